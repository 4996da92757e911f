# SPDX-License-Identifier: Apache-2.0
"""Event handlers of the Compare tab. Each checks everything that the browser sends."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from ...inference import AS_TRAINED, EngineError
from ..limits import LimitError, check_gate, check_prompt, check_text
from ..notices import Updates, notice, warn
from ..page import Page
from ..state.columns import columns
from ..state.session import LastRequest, Run, Session, Turn
from ..wire import blind, exchange, saved, views
from ..wire.peek import peek
from ..wire.stream import start, ticks
from ..words import base_name
from . import settings
from .examples import gallery


STILL = LimitError("Answers are still being written. Stop them first.")


@dataclass(frozen=True)
class Controls:
    """The Compare tab's own components.

    Attributes:
        prompt: what is typed.
        fields: the settings, by name.
        send: sends it.
        stop: ends all answers.
        retry: asks the latest prompt again.
        undo: takes it back.
        new: begins a new conversation.
        view: what the answers show.
        export: saves the conversation.
        hide: hides who answers until there is a vote.
    """

    prompt: gr.Textbox
    fields: dict[str, gr.components.Component]
    send: gr.Button
    stop: gr.Button
    retry: gr.Button
    undo: gr.Button
    new: gr.Button
    view: gr.Radio
    export: gr.Button
    hide: gr.Checkbox


class Handlers:
    """The Compare tab's events.

    Args:
        page: the parts that all tabs share.
        controls: this tab's own.
    """

    def __init__(self, page: Page, controls: Controls) -> None:
        self.page, self.backend, self.longest = page, page.backend, page.config.max_new_tokens
        self.controls = controls
        self.examples = gallery(page.is_demo).prompts
        self.again = (controls.retry, controls.undo, controls.new)
        # Controls that are useless before there is an answer are hidden.
        self.of_turns = (*self.again, controls.view, controls.export)
        shared = [*page.of_columns, page.status, page.detail, page.mailbox, page.keeper]
        self.outputs = [*shared, controls.send, controls.stop, controls.hide, *self.of_turns]

    # ---- what the page shows

    def frame(self, session: Session, routing: bool = True, **more: Any) -> Updates:
        """The current state of the session."""
        updates: Updates = {
            self.page.transcript: views.transcript(session, self.backend),
            self.page.status: views.status(session),
        }
        if routing:
            updates[self.page.routing] = views.routing(session, self.backend)
            updates[self.page.drift] = views.drift(session, self.backend)
        return updates

    def buttons(self, session: Session) -> Updates:
        """Which buttons are visible, and which are enabled."""
        running, has_turns = session.run is not None, bool(session.turns)
        return {
            self.controls.send: gr.Button(visible=not running),
            self.controls.stop: gr.Button(visible=running),
            **{button: gr.Button(visible=has_turns, interactive=not running) for button in self.again},
            self.controls.view: gr.Radio(visible=has_turns),
            self.controls.export: gr.Button(visible=has_turns),
        }

    def whole(self, session: Session, **more: Any) -> Updates:
        """The whole page, and what the browser keeps.

        Args:
            session: the visitor's.
            more: passed to the script that saves it.
        """
        shown: Updates = {self.page.detail: None, self.controls.hide: session.blind}
        return self.frame(session) | self.buttons(session) | shown | self.keep(session, **more)

    def keep(self, session: Session, **more: Any) -> Updates:
        """The conversation, for the browser to keep."""
        letter = {"number": time.time_ns(), "ticket": session.ticket, "text": saved.dump(session, self.backend)}
        return {self.page.keeper: letter | more}

    # ---- answers

    def submit(self, session: Session, prompt: Any, request: gr.Request, *values: Any) -> Iterator[Updates]:
        """A new prompt for all columns. The page has emptied the box; a refused prompt is put back."""
        if self.lost(session, request, values[-1]):
            yield self.cleared(session) | {self.page.mailbox: self.letter("refused")}
            return
        begun = False
        try:
            turn = Turn(session.next_id(), check_prompt(prompt), "", {})
            begun = yield from self._answer(session, turn, None, values)
        except LimitError as error:
            yield warn(error)
        if not begun:
            yield {self.page.mailbox: self.letter("refused")}

    def example(self, prompt: str) -> Callable[..., Iterator[Updates]]:
        """Ask an example at once, without touching the prompt box.

        In a new conversation, since earlier turns would be read too and the difference would be less clear: one
        that holds nothing but examples makes room. A conversation that the visitor began is continued.
        """

        def ask(session: Session, request: gr.Request, *values: Any) -> Iterator[Updates]:
            if self.lost(session, request, values[-1]):
                yield self.cleared(session)
            if session.run is None and all(turn.prompt in self.examples for turn in session.turns):
                session.clear()
            elif session.run is None:
                notice(
                    "The example was added as the next turn of your conversation. Start a new one to see it alone.",
                    "An example",
                )
            if not (yield from self._answer(session, Turn(session.next_id(), prompt, "", {}), None, values)):
                yield self.whole(session)

        return ask

    def retry(self, session: Session, request: gr.Request, *values: Any) -> Iterator[Updates]:
        """Ask the last prompt again with the current settings."""
        if self.lost(session, request, values[-1]):
            yield self.cleared(session)
        elif session.turns:
            last = session.turns[-1]
            yield from self._answer(session, Turn(last.id, last.prompt, "", {}), None, values)

    def retry_one(self, session: Session, event: gr.EventData, request: gr.Request, *values: Any) -> Iterator[Updates]:
        """Ask the last prompt again for one column."""
        if self.lost(session, request, values[-1]):
            yield self.cleared(session)
            return
        column = blind.column_of(session, self.backend, event._data.get("column"))
        if session.turns and column in columns(session, self.backend):
            yield from self._answer(session, session.turns[-1], column, values)

    def set_gate(self, session: Session, event: gr.EventData, request: gr.Request, *values: Any) -> Iterator[Updates]:
        """Change a column's gate and write its last answer again, so that the difference shows."""
        if self.lost(session, request, values[-1]):
            yield self.cleared(session)
            return
        column = event._data.get("column")
        variant = columns(session, self.backend).get(column) if isinstance(column, str) else None
        if variant is None or variant.strength is None:
            return
        try:
            if session.run is not None:
                raise LimitError("Answers are still being written. Stop them first, then change the gate.")
            asked = event._data.get("strength"), event._data.get("quantile")
            session.set_gate(variant, check_gate(*asked, variant.quantiles))
        except LimitError as error:
            warn(error)
            yield {self.page.transcript: views.transcript(session, self.backend, afresh=True)}
            return
        if session.turns:
            yield from self._answer(session, session.turns[-1], column, values)
        else:
            yield {self.page.transcript: views.transcript(session, self.backend)}

    def peek(self, session: Session, system: Any, event: gr.EventData) -> dict[str, Any]:
        """How far the text being typed, with the system prompt, is from the training data."""
        reading = peek(session, self.backend, event._data.get("text"), system) if session.opened else {}
        return reading | {"number": event._data.get("number")}

    def edit(self, session: Session, event: gr.EventData, request: gr.Request, *values: Any) -> Iterator[Updates]:
        """Change an earlier prompt; all later turns are dropped."""
        if self.lost(session, request, values[-1]):
            yield self.cleared(session)
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
        """Answer a turn in all columns or one and show it while it is written. Returns whether it was started.

        `values` are the settings, and whether the page hides who answers.
        """
        if session.run is None and session.renew(self.backend.generation):
            # The existing answers are from another base.
            turn, only = Turn(turn.id, turn.prompt, "", {}), None
        if self._warn_of_missing(session):
            yield self.page.column_updates(session)
            return False
        try:
            chosen = settings.check(dict(zip(settings.NAMES, values[:-1], strict=True)), self.longest)
        except LimitError as error:
            yield warn(error)
            return False
        if only is None:
            turn.system = chosen.system
        names = (only,) if only else tuple(columns(session, self.backend))
        return (yield from self.ask(session, turn, LastRequest(names, chosen.sampling, not chosen.one_at_a_time)))

    def ask(
        self, session: Session, turn: Turn, asked: LastRequest, restored: bool = False
    ) -> Generator[Updates, None, bool]:
        """Let columns answer a turn, which becomes the last, and show it. Returns whether it was started."""
        ballot = blind.ballot(session, self.backend, turn, asked.columns)
        # In its order too if they are written one after another.
        names = tuple(sorted(asked.columns, key=ballot.order.index)) if ballot is not None else asked.columns
        try:
            run = start(self.backend, session, turn, names, asked.sampling, asked.batched)
        except (LimitError, EngineError) as error:
            yield warn(error)
            return False
        turn.ballot = ballot
        # Later turns answered a conversation that no longer exists after the edit.
        session.forget_from(turn.id)
        session.turns.append(turn)
        session.shown_turn = None
        yield from self.watch(session, run, restored)
        return True

    def watch(self, session: Session, run: Run, restored: bool = False) -> Iterator[Updates]:
        """Show answers while they are written."""
        first = True
        for routing in ticks(run):
            yield self.whole(session, restored=restored) if first else self.frame(session, routing)
            first = False
        yield self.frame(session) | self.buttons(session) | self.keep(session)

    def cleared(self, session: Session) -> Updates:
        """The page with an empty conversation; the prompt box and the browser's saved conversation are unchanged."""
        return self.whole(session, text=None)

    def _warn_of_missing(self, session: Session) -> bool:
        """Say which of the visitor's adapters are gone, so that no answer is attributed to the wrong one."""
        sentences = self.backend.visitor_adapters.drop_missing(session)
        for sentence in sentences:
            notice(sentence, "An adapter is gone")
        return bool(sentences)

    def stop_one(self, session: Session, event: gr.EventData) -> None:
        """End one answer."""
        if session.run is not None:
            session.run.stop(str(blind.column_of(session, self.backend, event._data.get("column"))))

    def stop_all(self, session: Session) -> None:
        """End all answers."""
        if session.run is not None:
            session.run.stop()

    # ---- the conversation

    def undo(self, session: Session) -> Updates:
        """Undo the last turn; its prompt returns to the box if that is empty."""
        if session.run is not None:
            return warn(STILL)
        prompt = session.turns[-1].prompt if session.turns else ""
        if session.turns:
            session.forget_from(session.turns[-1].id)
        session.asked = None
        return self.whole(session) | {self.page.mailbox: self.letter("draft", text=prompt)}

    def new(self, session: Session) -> Updates:
        """Forget the conversation."""
        if session.run is not None:
            return warn(STILL)
        session.clear()
        return self.whole(session)

    def show(self, session: Session, view: Any) -> Updates:
        """Show the plain answers, their differences, or their routing."""
        session.view = view if view in ("plain", "differences", "routing") else "plain"
        return {self.page.transcript: views.transcript(session, self.backend)}

    # ---- in and out

    def link(self, session: Session, prompt: Any, *values: Any) -> Updates:
        """A link that opens this prompt with these settings."""
        try:
            text = check_text(prompt).strip() or (session.turns[-1].prompt if session.turns else "")
            named = dict(zip(settings.NAMES, values, strict=True))
            settings.check(named, self.longest)
            slim = columns(session, self.backend).get("slim")
            gate = AS_TRAINED if slim is None else session.gate(slim)
            return {self.page.mailbox: self.letter("link", query=settings.link(text, named, gate, self.longest))}
        except LimitError as error:
            return warn(error)

    def export(self, session: Session, request: gr.Request) -> Updates:
        """The conversation as a file."""
        if self.lost(session, request):
            return gr.skip()  # what the page still shows can be copied by hand
        if session.run is not None or not session.turns:
            sentence = "Answers are still being written." if session.run else "There is nothing to export yet."
            return warn(LimitError(sentence))
        if any(map(blind.hides, session.turns)):
            return warn(LimitError(blind.NO_EXPORT))
        text = exchange.dump(session, self.backend)
        size, limit = len(text.encode()), self.page.config.max_upload
        if size > limit:
            notice(
                f"The file has {size:,} bytes, but this app loads at most {limit:,}: only shorter conversations can "
                "be loaded again.",
                "A large file",
            )
        return {self.page.mailbox: self.letter("save", name="slim-compare.json", text=text)}

    def load_file(self, session: Session, path: Any) -> Updates:
        """A conversation from a file."""
        if session.run is not None:
            return warn(STILL)
        if not isinstance(path, str):
            return warn(LimitError("Choose a file first."))
        with self.page.uploads.reading(session.page, [path]):
            loaded = columns(session, self.backend)
            base = base_name(self.backend.engine.info)
            try:
                turns, other_base = exchange.load(path, base, loaded, self.page.config.max_upload, session.next_id)
            except LimitError as error:
                return warn(error)
        self.warn_of_other_base(other_base)
        session.clear()
        session.turns = turns
        return self.whole(session)

    def warn_of_other_base(self, other_base: str) -> None:
        """Say that a conversation is with another base, if it is."""
        if other_base:
            base = base_name(self.backend.engine.info)
            notice(
                f"This conversation was held with {other_base}. It is shown, but {base} does not see it when it "
                "answers.",
                "Another base model",
            )

    def adopt(self, session: Session, request: gr.Request) -> None:
        """The session belongs to the visitor of this page."""
        session.opened = True
        # The ticket is secret, and a page that is loaded again still has it.
        session.owner, session.page, session.user = session.ticket, str(request.session_hash), request.username
        # With many visitors, Gradio silently forgets the oldest.
        weakref.finalize(session, self.backend.visitor_adapters.leave, session.owner).atexit = False
        self.page.visits.arrive(session)
        session.renew(self.backend.generation)

    def lost(self, session: Session, request: gr.Request, hidden: Any = False) -> bool:
        """Whether the page's session is gone; says so once. Names that the page hid stay hidden."""
        if session.opened:
            return False
        self.adopt(session, request)
        session.blind = hidden is True
        notice(
            "The app was restarted, or had too many visitors, and has forgotten this conversation. Restore what "
            "this browser keeps of it, or press Enter to send a prompt in a new one.",
            "The conversation is gone",
        )
        return True

    @staticmethod
    def letter(kind: str, **content: str) -> dict[str, Any]:
        # With the number, the same file is sent again if it is asked for twice.
        return {"kind": kind, "number": time.time_ns(), **content}
