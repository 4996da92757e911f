# SPDX-License-Identifier: Apache-2.0
"""What the server remembers of one visitor. The browser only shows it: nothing it sends back changes the history."""

from __future__ import annotations

import itertools
import secrets
import threading
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from ...base.messages import Message
from ...inference import AS_TRAINED, GateSetting, Stops, Verdict, verdict_of
from ...inference.types import Drift, RoutingRecord, RowStep, Sampling, Variant
from ..wire.payload import RoutingPacker
from .ballot import TIE, Ballot
from .meter import Meter


# Numbers of routing that one conversation keeps: 256 MB of float32.
MAX_NUMBERS = 64_000_000
# Seconds for which answers continue without a watcher: as long as reloading a page takes.
PATIENCE = 10.0
# What the answers show: as they are, word by word against the base's, or coloured by who answered.
View = Literal["plain", "differences", "routing"]


@dataclass
class Answer:
    """One column's answer to one prompt.

    Attributes:
        variant: the variant that answered; the column may show another one by now.
        step: how far it is.
        sampling: how its tokens were chosen.
        token_ids: of the answer, so that other variants can read exactly it.
        routing: the whole routing record so far.
        gate: what was asked of its gate.
        gated: whether the record says what a gate did.
        packer: what the page already has of it.
    """

    variant: Variant
    step: RowStep
    sampling: Sampling
    token_ids: tuple[int, ...] = ()
    routing: RoutingRecord | None = None
    gate: GateSetting = AS_TRAINED
    gated: bool = False
    packer: RoutingPacker = field(default_factory=RoutingPacker, init=False, repr=False, compare=False)
    _share: tuple[weakref.ref, float | None] | None = field(default=None, init=False, repr=False, compare=False)
    _verdict: tuple[weakref.ref, Verdict] | None = field(default=None, init=False, repr=False, compare=False)

    def identity(self) -> float | None:
        """Mean identity share of the answer so far; None if nothing is recorded."""
        record, cached = self.routing, self._share
        if record is None:
            return None
        # It is drawn several times a second, and reads millions of numbers. The reference is weak, so that a record
        # that was dropped frees its memory.
        if cached is None or cached[0]() is not record.weights:
            cached = self._share = (weakref.ref(record.weights), record.answer_identity)
        return cached[1]

    def verdict(self) -> Verdict | None:
        """The gate's verdict on the prompt and the answer so far; None if no gate was recorded."""
        record, cached = self.routing, self._verdict
        if record is None or not self.gated or not record.tokens:
            return None
        if cached is None or cached[0]() is not record.weights:
            cached = self._verdict = (weakref.ref(record.weights), verdict_of(record))
        return cached[1]


@dataclass
class Turn:
    """A prompt and its answers, one for each column.

    Attributes:
        id: unique in the session; the browser names a turn by it.
        prompt: the user's message.
        system: the system prompt it was asked with; may be empty.
        answers: by column.
        drift: how the adapters read the base's answer, by column, once it is known.
        ballot: the blind vote on it; None if there is none.
    """

    id: int
    prompt: str
    system: str
    answers: dict[str, Answer]
    drift: Drift | None = None
    ballot: Ballot | None = None


@dataclass(frozen=True)
class LastRequest:
    """The request of the latest turn, so that it can be repeated.

    Attributes:
        columns: that answer.
        sampling: how their tokens are chosen.
        batched: all at once, or one after another.
    """

    columns: tuple[str, ...]
    sampling: Sampling
    batched: bool


@dataclass
class Run:
    """A run: answers that are being written.

    Attributes:
        stops: the engine's stop flags.
        rows: the columns that answer, in the engine's row order.
        ended: set when the last answer has ended and the model is free.
        stopping: whether all of them were asked to stop.
        deserted: whether that was because nobody was watching.
    """

    stops: Stops
    rows: tuple[str, ...]
    ended: threading.Event = field(default_factory=threading.Event)
    stopping: bool = False
    deserted: bool = False
    _watchers: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Within this context, a page shows the answers. They end if no page shows them for `PATIENCE` seconds."""
        with self._lock:
            self._watchers += 1
        try:
            yield
        finally:
            with self._lock:
                self._watchers -= 1
                deserted = not self._watchers and not self.ended.is_set()
            if deserted:
                timer = threading.Timer(PATIENCE, self._desert)
                timer.daemon = True
                timer.start()

    def _desert(self) -> None:
        with self._lock:
            if self._watchers or self.stopping or self.ended.is_set():
                return
            self.deserted = True
        self.stop()

    def stop(self, column: str | None = None) -> None:
        """End one answer, or all."""
        if column is None:
            self.stopping = True
            self.stops.stop_all()
        elif column in self.rows:
            self.stops.stop(self.rows.index(column))


class Session:
    """One visitor's conversation and adapters.

    Attributes:
        ticket: an unguessable key with which a reloaded page finds its conversation.
        user: the name that the visitor signed in with, if they had to.
        pages: how many pages show it, or did within the last hour: a page that was loaded again is another one.
        owner: whose the adapters are that the visitor brings; empty where no page was opened.
        page: Gradio's name for the latest page that shows it.
        own_variants: the visitor's own adapters, by column.
        turns: the conversation, oldest first.
        run: what is being written now, if anything.
        asked: what the run was asked; it stays if the answers ended because nobody was watching.
        view: what the answers show.
        place: place in the queue for the model.
        opened: whether the page has its settings.
        shown: the column whose routing is shown; None for the first SLIM.
        shown_turn: the turn whose routing and drift are shown; None for the latest.
        generation: of the base that the conversation is with.
        gates: how soon gates close for this visitor, by the names of variants; the others as trained.
        meter: what may be asked of the prompt that is being typed.
        blind: whether the page hides who answers until there is a vote.
        votes: votes of past conversations, by the label of the winner.
    """

    def __init__(self) -> None:
        self.ticket = secrets.token_urlsafe()
        self.user: str | None = None
        self.pages = 0
        self.owner = ""
        self.page = ""
        self.own_variants: dict[str, Variant] = {}
        self.turns: list[Turn] = []
        self.run: Run | None = None
        self.asked: LastRequest | None = None
        self.view: View = "plain"
        self.place = 0
        self.opened = False
        self.shown: str | None = None
        self.shown_turn: int | None = None
        self._checking = False
        self.generation = 0
        self.gates: dict[str, GateSetting] = {}
        self.meter = Meter()
        self.blind = False
        self.votes: Counter[str] = Counter()
        self._ids = itertools.count(1)
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: dict) -> Session:
        # Gradio copies a state's first value for each visitor, and a lock cannot be copied.
        return Session()

    def begin(self, run: Run) -> bool:
        """Reserve the session for a run; False while another one is running."""
        with self._lock:
            if self.run is not None:
                return False
            self.run = run
            return True

    def end(self) -> None:
        """Give it back."""
        with self._lock:
            run, self.run = self.run, None
        if run is not None:
            run.ended.set()

    def begin_check(self) -> bool:
        """Reserve the session for checking an adapter; False while another check is running."""
        with self._lock:
            free, self._checking = not self._checking, True
            return free

    def end_check(self) -> None:
        """Give it back."""
        self._checking = False

    def gate(self, variant: Variant) -> GateSetting:
        """What this visitor asks of a variant's gate."""
        return AS_TRAINED if variant.strength is None else self.gates.get(variant.name, AS_TRAINED)

    def set_gate(self, variant: Variant, gate: GateSetting) -> None:
        """Set what this visitor asks of a variant's gate."""
        self.gates = {name: other for name, other in self.gates.items() if name != variant.name}
        trained = None if variant.measure is None else variant.measure.quantile
        changed = GateSetting(
            None if gate.strength == variant.strength else gate.strength,
            None if gate.quantile == trained else gate.quantile,
        )
        if changed != AS_TRAINED:
            self.gates[variant.name] = changed

    def next_id(self) -> int:
        """A new turn id."""
        return next(self._ids)

    def turn(self, turn_id: Any) -> Turn | None:
        """The turn with this id."""
        return next((turn for turn in self.turns if turn.id == turn_id), None)

    def forget_from(self, turn_id: int) -> None:
        """Drop a turn and all later ones."""
        self.turns[:] = itertools.takewhile(lambda turn: turn.id != turn_id, self.turns)
        turn_ids = {turn.id for turn in self.turns}
        if self.shown_turn not in turn_ids:
            self.shown_turn = None

    def votes_of_turns(self) -> Counter[str]:
        """Votes in this conversation, by the label of the winner; `TIE` for no difference."""
        counts: Counter[str] = Counter()
        for turn in self.turns:
            best = turn.ballot.best if turn.ballot is not None else None
            if best is not None:
                counts[TIE if best == TIE else turn.answers[best].variant.label] += 1
        return counts

    def clear(self) -> None:
        """Forget the conversation, but keep its votes."""
        self.votes += self.votes_of_turns()
        self.turns.clear()
        self.asked = None
        self.shown_turn = None

    def renew(self, generation: int) -> bool:
        """Forget a conversation with an earlier base. Returns whether the base has changed."""
        if self.generation == generation:
            return False
        self.generation = generation
        self.shown = None
        self.gates = {}
        self.clear()
        # The votes were on answers of another base.
        self.votes.clear()
        return True

    def trim(self, limit: int = MAX_NUMBERS) -> None:
        """Drop the routing of the oldest answers while all records together have more than `limit` numbers."""
        for turn in reversed(self.turns):
            for answer in turn.answers.values():
                limit -= answer.routing.weights.numel() if answer.routing is not None else 0
                if limit < 0:
                    answer.routing = None

    def messages(self, column: str, turn: Turn, variant: str) -> tuple[Message, ...]:
        """The conversation as a variant sees it before it answers a turn in a column: with only its own answers."""
        messages = [Message("system", turn.system)] if turn.system else []
        for earlier in itertools.takewhile(lambda other: other.id != turn.id, self.turns):
            answer = earlier.answers.get(column)
            # A turn that this variant never answered would leave two user messages in a row.
            if answer is not None and answer.variant.name == variant and answer.step.text:
                messages += [Message("user", earlier.prompt), Message("assistant", answer.step.text)]
        return (*messages, Message("user", turn.prompt))
