# SPDX-License-Identifier: Apache-2.0
"""How a page begins: as it was left, as a link says, with answers that are still being written, or with what the
browser saved.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import gradio as gr

from ...inference import GateSetting
from ..limits import LimitError, check_gate, check_text
from ..notices import Updates, notice, warn
from ..state.columns import columns
from ..state.session import Session
from ..wire import saved
from ..words import base_name
from . import settings
from .handlers import Handlers


class PageLoad:
    """Events of a page that is loading.

    Args:
        handlers: what happens when a visitor does something.
    """

    def __init__(self, handlers: Handlers) -> None:
        self.handlers, self.page, self.backend = handlers, handlers.page, handlers.backend
        controls = handlers.controls
        # The session too: Gradio deletes only a state that was an output once.
        self.outputs = [controls.prompt, *controls.fields.values(), *handlers.outputs, self.page.session]

    def open(self, session: Session, stored_settings: Any, ticket: Any, request: gr.Request) -> Updates:
        """Open the page as it was left, or as a link says.

        Args:
            session: a new one.
            stored_settings: the settings that the browser keeps.
            ticket: of the conversation that this page showed before it was loaded again.
            request: of the page.
        """
        earlier = self.page.visits.find(ticket, request.username)
        is_reload = earlier is not None
        session = earlier or session
        self.handlers.adopt(session, request)
        if is_reload:
            # They may have gone since the page that brought them was closed.
            for sentence in self.backend.visitor_adapters.drop_missing(session):
                notice(sentence, "An adapter is gone")
        query = {name: value for name, value in request.query_params.items() if isinstance(value, str)}
        # A link is complete: settings that are not in it get their default, whatever this visitor had chosen.
        linked = any(name in query for name in ("prompt", *settings.GATE, *settings.NAMES))
        if linked and not session.turns:
            self._restore_gate(session, query)
        values = settings.restore(query if linked else stored_settings, self.handlers.longest)
        controls = self.handlers.controls
        updates: Updates = {controls.fields[name]: value for name, value in values.items()}
        updates |= self.handlers.whole(
            session, go_on=session.asked is not None, **({} if is_reload else {"text": None})
        )
        if session.own_variants:
            updates |= self.page.column_updates(session)
        if is_reload:
            updates[controls.view] = gr.Radio(value=session.view, visible=bool(session.turns))
        prompt = self._prompt(query.get("prompt", ""))
        # What is typed meanwhile stays, and a prompt that was sent is not sent again.
        if prompt and prompt.strip() not in {turn.prompt for turn in session.turns}:
            updates[controls.prompt] = prompt
        return updates | {self.page.session: session}

    def go_on(self, session: Session) -> Iterator[Updates]:
        """Show answers that are still being written; ask again for those that ended because nobody was watching."""
        if session.run is not None:
            yield from self.handlers.watch(session, session.run)
        elif session.asked is not None and session.turns:
            yield from self.handlers.ask(session, session.turns[-1], session.asked)

    def restore(self, session: Session, event: gr.EventData, request: gr.Request) -> Iterator[Updates]:
        """What the browser kept, with what it still waits for asked again. It never takes the place of another
        conversation."""
        if not session.opened:
            self.handlers.adopt(session, request)
        if session.run is not None or session.turns:
            yield warn(LimitError("There is a conversation already. Start a new one first, then restore the other."))
            return
        loaded, base = columns(session, self.backend), base_name(self.backend.engine.info)
        try:
            conversation = saved.load(event._data.get("text"), base, loaded, session.next_id)
        except LimitError as error:
            yield warn(LimitError(f"What this browser saved cannot be restored. {error}"))
            return
        self.handlers.warn_of_other_base(conversation.other_base)
        for label in (
            label for column, label in conversation.visitor_adapters.items() if column not in session.own_variants
        ):
            notice(f"Your adapter “{label}” is no longer here; add it again under Adapters.", "An adapter is gone")
        session.turns = conversation.turns
        session.blind = session.blind or conversation.blind
        for name, gate in conversation.gates.items():
            session.set_gate(loaded[name], gate)
        if conversation.asked is None:
            yield self.handlers.whole(session, restored=True)
            return
        last, limit = session.turns[-1], self.handlers.longest
        if conversation.asked.sampling.max_new_tokens > limit:
            notice(f"The longest answer has at most {limit:,} tokens here; more were asked for.", "Not asked again")
        elif (yield from self.handlers.ask(session, last, conversation.asked, restored=True)):
            return
        # It cannot be asked here: its prompt goes back where it was typed.
        letter = self.handlers.letter("draft", text="" if last.answers else last.prompt)
        if not last.answers:
            session.forget_from(last.id)
        yield self.handlers.whole(session, restored=True) | {self.page.mailbox: letter}

    def _prompt(self, text: str) -> str:
        """The prompt in a link, with a notice if it is invalid."""
        try:
            return check_text(text)
        except LimitError as error:
            notice(str(error), "The link does not work")
            return ""

    def _restore_gate(self, session: Session, query: Mapping[str, str]) -> None:
        """Set SLIM's gate from a link; an invalid value leaves it as it was trained."""
        variant = columns(session, self.backend).get("slim")
        if variant is None or variant.strength is None:
            return
        asked: dict[str, float | None] = dict.fromkeys(settings.GATE)
        for name in settings.GATE:
            with suppress(KeyError, ValueError):
                wanted = asked | {name: float(query[name])}
                check_gate(**wanted, stored=variant.quantiles)
                asked = wanted
        session.set_gate(variant, GateSetting(**asked))
