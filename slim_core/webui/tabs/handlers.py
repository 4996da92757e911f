# SPDX-License-Identifier: Apache-2.0
"""What happens when a visitor does something under Compare. Each handler checks all that comes from the browser."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from typing import Any

import gradio as gr

from ...inference import EngineError
from ..limits import LimitError, check_prompt, check_strength, check_text
from ..notices import Updates, notice, warn
from ..page import Page
from ..state.columns import columns
from ..state.session import Session, Turn
from ..wire import exchange, views
from ..wire.peek import peek
from ..wire.stream import start, ticks
from ..words import base_name
from . import settings
from .examples import gallery


class Handlers:
    """The Compare tab's events.

    Args:
        page: the parts that all tabs share.
        send: the others are this tab's own components.
    """

    def __init__(self, page: Page, send, stop, retry, undo, new, view) -> None:
        self.page, self.backend, self.longest = page, page.backend, page.config.max_new_tokens
        self.send, self.stop, self.view = send, stop, view
        self.examples = gallery(page.is_demo).prompts
        self.again = (retry, undo, new)
        self.outputs = [*page.of_columns, page.status, page.detail, page.mailbox, send, stop, *self.again, view]
        # The session too: Gradio deletes only a state that was an output once.
        self.outputs_of_open = [page.transcript, page.status, page.session]

    # ---- what the page shows

    def frame(self, session: Session, routing: bool = True, **more: Any) -> Updates:
        """The session as it is now."""
        updates: Updates = {
            self.page.transcript: views.transcript(session, self.backend),
            self.page.status: views.status(session),
        }
        if routing:
            updates[self.page.routing] = views.routing(session, self.backend)
            updates[self.page.drift] = views.drift(session, self.backend)
        return updates

    def buttons(self, session: Session) -> Updates:
        """Which buttons can be pressed."""
        running = session.run is not None
        free = bool(session.turns) and not running
        return {
            self.send: gr.Button(visible=not running),
            self.stop: gr.Button(visible=running),
            **{button: gr.Button(interactive=free) for button in self.again},
        }

    # ---- answers

    def submit(self, session: Session, prompt: Any, request: gr.Request, *values: Any) -> Iterator[Updates]:
        """A new prompt for all. The page has taken it out of its box; one that is refused goes back."""
        if self._lost(session, request):
            yield self._anew(session) | {self.page.mailbox: self._letter("refused")}
            return
        begun = False
        try:
            turn = Turn(session.next_id(), check_prompt(prompt), "", {})
            begun = yield from self._answer(session, turn, None, values)
        except LimitError as error:
            yield warn(error)
        if not begun:
            yield {self.page.mailbox: self._letter("refused")}

    def example(self, prompt: str) -> Callable[..., Iterator[Updates]]:
        """What an example's button does: it asks at once, and leaves the prompt's box alone.

        In a conversation of its own, as what was said before is read too and the difference would be less plain: one
        that holds nothing but examples makes room. What a visitor has asked themselves goes on.
        """

        def ask(session: Session, request: gr.Request, *values: Any) -> Iterator[Updates]:
            if self._lost(session, request):
                yield self._anew(session)
            if session.run is None and all(turn.prompt in self.examples for turn in session.turns):
                session.clear()
            elif session.run is None:
                notice(
                    "The example is the next turn of your conversation. Begin a new one to see it alone.", "An example"
                )
            if not (yield from self._answer(session, Turn(session.next_id(), prompt, "", {}), None, values)):
                yield self.frame(session) | self.buttons(session)

        return ask

    def retry(self, session: Session, request: gr.Request, *values: Any) -> Iterator[Updates]:
        """The last prompt again, with the settings of now."""
        if self._lost(session, request):
            yield self._anew(session)
        elif session.turns:
            last = session.turns[-1]
            yield from self._answer(session, Turn(last.id, last.prompt, "", {}), None, values)

    def retry_one(self, session: Session, event: gr.EventData, request: gr.Request, *values: Any) -> Iterator[Updates]:
        """The last prompt again for one column."""
        if self._lost(session, request):
            yield self._anew(session)
            return
        column = event._data.get("column")
        if session.turns and column in columns(session, self.backend):
            yield from self._answer(session, session.turns[-1], column, values)

    def set_gate(self, session: Session, event: gr.EventData, request: gr.Request, *values: Any) -> Iterator[Updates]:
        """How strongly a column's gate closes; its last answer is written again, so that the difference is seen."""
        if self._lost(session, request):
            yield self._anew(session)
            return
        column = event._data.get("column")
        variant = columns(session, self.backend).get(column) if isinstance(column, str) else None
        if variant is None or variant.strength is None:
            return
        try:
            if session.run is not None:
                raise LimitError("Answers are still being written. Stop them first, then change the gate.")
            session.set_strength(variant, check_strength(event._data.get("strength")))
        except LimitError as error:
            warn(error)
            yield {self.page.transcript: views.transcript(session, self.backend, afresh=True)}
            return
        if session.turns:
            yield from self._answer(session, session.turns[-1], column, values)
        else:
            yield {self.page.transcript: views.transcript(session, self.backend)}

    def peek(self, session: Session, event: gr.EventData) -> dict[str, Any]:
        """How far what is being typed is from the training data."""
        found = peek(session, self.backend, event._data.get("text")) if session.opened else {}
        return found | {"number": event._data.get("number")}

    def edit(self, session: Session, event: gr.EventData, request: gr.Request, *values: Any) -> Iterator[Updates]:
        """Another prompt at an earlier place; what came after it is gone."""
        if self._lost(session, request):
            yield self._anew(session)
            return
        turn = session.turn(event._data.get("turn"))
        if turn is None:
            return
        try:
            text = check_prompt(event._data.get("text"))
        except LimitError as error:
            yield warn(error)
            return
        yield from self._answer(session, Turn(turn.id, text, "", {}), None, values)

    def _answer(self, session: Session, turn: Turn, only: str | None, values: tuple) -> Generator[Updates, None, bool]:
        """Answer a turn in all columns or one, and show it while it is written; whether it was begun at all."""
        if session.run is None and session.renew(self.backend.generation):
            # What was there was said by another base.
            turn, only = Turn(turn.id, turn.prompt, "", {}), None
        if self._missed(session):
            yield self.page.column_updates(session)
            return False
        try:
            chosen = settings.check(dict(zip(settings.NAMES, values, strict=True)), self.longest)
            if only is None:
                turn.system = chosen.system
            names = [only] if only else list(columns(session, self.backend))
            run = start(self.backend, session, turn, names, chosen.sampling, not chosen.one_at_a_time)
        except (LimitError, EngineError) as error:
            yield warn(error)
            return False
        # Whatever came after an edited prompt answered something that was never asked.
        session.forget_from(turn.id)
        session.turns.append(turn)
        session.shown_turn = None
        first = True
        for routing in ticks(run):
            updates = self.frame(session, routing or first)
            if first:
                updates |= self.buttons(session) | {self.page.detail: None}
                first = False
            yield updates
        yield self.frame(session) | self.buttons(session)
        return True

    def _anew(self, session: Session) -> Updates:
        """The page with an empty conversation, and the prompt as it stands there."""
        return self.frame(session) | self.buttons(session) | {self.page.detail: None}

    def _missed(self, session: Session) -> bool:
        """Say which of the visitor's adapters went; nobody's answer should be taken for another's."""
        told = self.backend.own.miss(session)
        for sentence in told:
            notice(sentence, "An adapter is gone")
        return bool(told)

    def stop_one(self, session: Session, event: gr.EventData) -> None:
        """End one answer."""
        if session.run is not None:
            session.run.stop(str(event._data.get("column")))

    def stop_all(self, session: Session) -> None:
        """End all answers."""
        if session.run is not None:
            session.run.stop()

    # ---- the conversation

    def undo(self, session: Session) -> Updates:
        """Take the last turn back; its prompt can be changed and sent again, if nothing else is in the box."""
        if session.run is not None:
            return warn(LimitError("Answers are still being written. Stop them first."))
        prompt = session.turns[-1].prompt if session.turns else ""
        if session.turns:
            session.forget_from(session.turns[-1].id)
        letter = self._letter("draft", text=prompt)
        return self.frame(session) | self.buttons(session) | {self.page.mailbox: letter, self.page.detail: None}

    def new(self, session: Session) -> Updates:
        """Forget the conversation."""
        if session.run is not None:
            return warn(LimitError("Answers are still being written. Stop them first."))
        session.clear()
        return self.frame(session) | self.buttons(session) | {self.page.detail: None}

    def show(self, session: Session, view: Any) -> Updates:
        """Answers as they are, their differences, or their routing."""
        session.view = view if view in ("plain", "differences", "routing") else "plain"
        return {self.page.transcript: views.transcript(session, self.backend)}

    # ---- in and out

    def link(self, session: Session, prompt: Any, *values: Any) -> Updates:
        """An address that opens this prompt with these settings."""
        try:
            text = check_text(prompt).strip() or (session.turns[-1].prompt if session.turns else "")
            named = dict(zip(settings.NAMES, values, strict=True))
            settings.check(named, self.longest)
            named["strength"] = self._slim_strength(session)
            return {self.page.mailbox: self._letter("link", query=settings.link(text, named, self.longest))}
        except LimitError as error:
            return warn(error)

    def export(self, session: Session, request: gr.Request) -> Updates:
        """The conversation as a file."""
        if self._lost(session, request):
            return gr.skip()  # what the page still shows can be copied by hand
        if session.run is not None or not session.turns:
            why = "Answers are still being written." if session.run else "There is nothing to export yet."
            return warn(LimitError(why))
        text = exchange.dump(session, self.backend)
        size, most = len(text.encode()), self.page.config.max_upload
        if size > most:
            notice(
                f"The file has {size:,} bytes, but this app reads back at most {most:,}: shorter conversations can be "
                "read again.",
                "A large file",
            )
        return {self.page.mailbox: self._letter("save", name="slim-compare.json", text=text)}

    def load_file(self, session: Session, path: Any) -> Updates:
        """A conversation from a file."""
        if session.run is not None:
            return warn(LimitError("Answers are still being written. Stop them first."))
        with self.page.uploads.reading(session.owner, [path]):
            loaded = columns(session, self.backend)
            base = base_name(self.backend.engine.info)
            try:
                turns, foreign = exchange.load(path, base, loaded, self.page.config.max_upload, session.next_id)
            except LimitError as error:
                return warn(error)
        if foreign:
            notice(
                f"The conversation is with {foreign}. It is shown, but {base} does not see it when it answers.",
                "Another base model",
            )
        session.clear()
        session.turns = turns
        return self.frame(session) | self.buttons(session) | {self.page.detail: None}

    def _adopt(self, session: Session, request: gr.Request) -> None:
        """The session belongs to the visitor of this page."""
        session.opened = True
        session.owner = str(request.session_hash)
        # Of many visitors Gradio forgets the first, without a word.
        weakref.finalize(session, self.backend.own.leave, session.owner).atexit = False
        session.renew(self.backend.generation)

    def _lost(self, session: Session, request: gr.Request) -> bool:
        """Whether the page was opened with a session that is not there any more; says so once."""
        if session.opened:
            return False
        self._adopt(session, request)
        notice(
            "The app was started again, or had too many visitors, and has forgotten this conversation. It begins "
            "anew; press Enter to send a prompt again.",
            "The conversation is gone",
        )
        return True

    def open(self, session: Session, saved: Any, request: gr.Request) -> list[Any]:
        """The page as it was left, or as a link says."""
        self._adopt(session, request)
        query = {name: value for name, value in request.query_params.items() if isinstance(value, str)}
        # A link says all: what is not in it is the default, whatever this visitor had chosen for themselves.
        linked = any(name in query for name in ("prompt", "strength", *settings.NAMES))
        if "strength" in query:
            self._restore_strength(session, query["strength"])
        values = settings.restore(query if linked else saved, self.longest)
        prompt = ""
        if "prompt" in query:
            try:
                prompt = check_text(query["prompt"])
            except LimitError as error:
                notice(str(error), "The link does not work")
        return [prompt, *values.values(), views.transcript(session, self.backend), views.status(session), session]

    def _slim_strength(self, session: Session) -> float | None:
        """What the visitor chose for the gate of SLIM's column."""
        variant = columns(session, self.backend).get("slim")
        return None if variant is None else session.strength(variant)

    def _restore_strength(self, session: Session, text: str) -> None:
        """A gate as a link says; nonsense leaves it as it was trained."""
        variant = columns(session, self.backend).get("slim")
        if variant is not None and variant.strength is not None:
            with suppress(ValueError):
                session.set_strength(variant, check_strength(float(text)))

    @staticmethod
    def _letter(kind: str, **content: str) -> dict[str, Any]:
        # The number makes every letter a new one, the same file twice included.
        return {"kind": kind, "number": time.time_ns(), **content}
