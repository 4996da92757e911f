# SPDX-License-Identifier: Apache-2.0
"""Event handlers of the blind vote."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ..limits import LimitError
from ..notices import Updates, warn
from ..state.session import Session
from ..wire import blind
from .handlers import Handlers


class Voting:
    """Events of the blind vote.

    Args:
        handlers: what happens when a visitor does something else.
    """

    def __init__(self, handlers: Handlers) -> None:
        self.handlers = handlers

    def hide(self, session: Session, value: Any, request: gr.Request) -> Updates:
        """Hide or show who answers from now on. Turns that had no vote get none."""
        if self.handlers.lost(session, request, value):
            return self.handlers.cleared(session)
        session.blind = value is True
        if not session.blind:
            blind.reveal(session)
        return self.handlers.frame(session) | self.handlers.keep(session)

    def vote(self, session: Session, hidden: Any, event: gr.EventData, request: gr.Request) -> Updates:
        """The best answer to a prompt; then the names are revealed."""
        if self.handlers.lost(session, request, hidden):
            return self.handlers.cleared(session)
        turn = session.turn(event._data.get("turn"))
        if turn is None or turn.ballot is None or not turn.ballot.hides:
            return gr.skip()
        if any(answer.step.state != "done" for answer in turn.answers.values()):
            return warn(LimitError("The answers are still being written. Vote when all are finished."))
        turn.ballot.vote(event._data.get("choice"))
        return self.handlers.frame(session) | self.handlers.keep(session)
