# SPDX-License-Identifier: Apache-2.0
"""The Routing tab: which tokens went through identity and which through LoRA, layer by layer."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ..page import Page
from ..state.columns import ADAPTERS
from ..state.session import Session
from ..wire import blind, views
from ..wire.payload import token_detail
from . import tryout
from .examples import gallery


def build(page: Page, tab: gr.Tab) -> None:
    """Build the tab's layout and connect its events."""
    quick = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    if page.is_demo:
        page.connect_examples(tryout.build("slim-ask", gallery(page.is_demo), with_single=False))
    page.routing.render()
    page.detail.render()

    def choose(session: Session, event: gr.EventData) -> list[Any]:
        """Another answer's routing."""
        column, turn = event._data.get("column"), session.turn(event._data.get("turn"))
        session.shown = column if column in ADAPTERS else None
        latest = session.turns[-1].id if session.turns else None
        # If the latest turn is selected, the selection moves on with the next turn; an earlier one stays selected.
        session.shown_turn = turn.id if turn and turn.id != latest else None
        return [views.routing(session, page.backend), views.drift(session, page.backend), None]

    def pick(session: Session, event: gr.EventData) -> Any:
        """One token in full, from the server's own record."""
        turn, token = session.turn(event._data.get("turn")), event._data.get("token")
        answer = turn.answers.get(event._data.get("column")) if turn else None
        record = answer.routing if answer else None
        if answer is None or record is None or blind.hides(turn):
            return gr.skip()
        if type(token) is not int or not 0 <= token < record.weights.shape[1]:
            return gr.skip()
        return token_detail(record, token) | {"gated": answer.gated}

    page.routing.choose(choose, [page.session], [page.routing, page.drift, page.detail], **quick)
    page.routing.pick(pick, [page.session], [page.detail], trigger_mode="always_last", **quick)
