# SPDX-License-Identifier: Apache-2.0
"""Many callers, one model: the rows of all of them in shared batches, which rows join and leave between two forwards.

There is no thread of its own. A caller that waits for its answers makes the next forward for everybody, unless another
one is making it already. So without other callers an answer costs no more than in an engine for one, and a forked
process lacks no thread. Forwards that read (prompts, or an answer for its drift) and forwards that write take turns.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager

from transformers import PreTrainedModel

from ..base.devices import device_memory
from ..base.errors import EngineError, is_out_of_memory, out_of_memory_sentence
from ..outside.errors import first_line
from .cache import growing_cache, is_growing, positions_vary
from .draft import Draft, Work
from .drift import AnswerReading, DriftTensors
from .fair_queue import FairQueue, QueuePlace
from .forwards import Forwards
from .kept import KeptRows


# Rows that are written at once. More gain little, and everybody's next token comes later.
MOST_ROWS = 96
# Of the memory that is free when the model is loaded, what caches may take; the rest is for adapters and activations.
SHARE_OF_MEMORY = 0.5


class Scheduler:
    """Who is answered now, and in which batch. Any thread may call any method.

    Args:
        model: the base model with its adapters.

    Attributes:
        model: as it was given.
        line: who waits to be answered, or to have the model alone.
        most_rows: how many rows are written at once; one caller's may be more.
        kept: rows that have ended, for prompts that go on from them.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.line = FairQueue()
        shares = is_growing(growing_cache(model.config)) and not positions_vary(model.config)
        self.most_rows = MOST_ROWS if shares else 0
        free, _ = device_memory(model.device)
        self._most_bytes = None if free is None else SHARE_OF_MEMORY * free
        self.kept = KeptRows(possible=shares)
        self._start()

    def _start(self) -> None:
        self._forwards = Forwards(self.model, self.line.changed, self.most_rows > 0, self.kept)
        self._leading = False
        self._between = 0
        self._process = os.getpid()

    def close(self) -> None:
        """Let go of the model; the caller has it alone."""
        self.model = None  # type: ignore[assignment]
        self._forwards.close()
        self.kept.clear()

    def refresh(self) -> None:
        """An adapter was attached or detached; the caller has the model alone."""
        self.kept.clear()
        self._forwards.refresh()

    # -- who may come --------------------------------------------------------------------------------------------

    def join(self, visitor: Hashable = None) -> QueuePlace:
        """Get in line; whoever joins leaves it, or is let in by `enter`. For visitors see `FairQueue.join`."""
        ticket = self.line.join(visitor)
        with self.line.changed:
            if self._process != os.getpid():
                self._start()  # as the line does
        return ticket

    def enter(self, ticket: QueuePlace, work: Work, seconds: float, check: Callable[[], None] = lambda: None) -> bool:
        """Wait for the turn and for room, at most so long; who is let in must `leave`.

        Args:
            ticket: the place in line.
            work: what is asked for.
            seconds: how long.
            check: called when there is room, before anybody else sees the work.

        Returns:
            Whether the work was let in.
        """
        with self.line.changed:
            if not ticket.wait(seconds, lambda: self._has_room(work)):
                return False
            check()
            self._forwards.works.append(work)
            ticket.leave()
            return True

    def _has_room(self, work: Work) -> bool:
        works = self._forwards.works
        if not works:
            return True
        if self.most_rows < work.rows + sum(other.rows for other in works):
            return False
        needed_bytes = sum(each.rows * each.columns for each in (work, *works)) * self._forwards.column_bytes
        return self._most_bytes is None or needed_bytes <= self._most_bytes

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait in line until nobody is answered, and have the model for the duration of a `with` block."""
        ticket = self.join()
        try:
            ticket.wait(None, lambda: not self._forwards.works)
            yield
        finally:
            ticket.leave()

    def alone_if_free(self) -> QueuePlace | None:
        """Have the model until the place is left, if nobody waits or is answered; None if somebody is."""
        ticket = self.join()
        if ticket.wait(0, lambda: not self._forwards.works):
            return ticket
        ticket.leave()
        return None

    @property
    def busy(self) -> int:
        """How many are answered or wait in line."""
        with self.line.changed:
            return len(self._forwards.works) + len(self.line)

    # -- what a caller does --------------------------------------------------------------------------------------

    def advance(self, work: Work) -> None:
        """Return when something of the work has changed, making forwards as long as nobody else does."""
        while True:
            with self.line.changed:
                # A caller that waits to make a forward between two steps goes first, or it might never get a turn.
                self.line.changed.wait_for(lambda: work.changed or not (self._leading or self._between))
                if work.changed:
                    work.changed = False
                    return
                self._leading = True
            try:
                self._forwards.step()
            finally:
                self._led()

    def _led(self) -> None:
        with self.line.changed:
            self._leading = False
            self._forwards.tidy()
            self.line.changed.notify_all()

    @contextmanager
    def between(self) -> Iterator[None]:
        """Have the model for a forward between those of others, for a caller whose work was let in."""
        with self.line.changed:
            self._between += 1
            try:
                self.line.changed.wait_for(lambda: not self._leading)
                self._leading = True
            finally:
                self._between -= 1
        try:
            yield
        finally:
            self._led()

    def read(self, work: Work, reading: AnswerReading) -> DriftTensors | None:
        """Read an answer between the forwards of others, for a work that was let in and has none to write.

        Returns:
            None if it was stopped.

        Raises:
            EngineError: if memory runs out or the model fails.
        """
        with self.line.changed:
            work.reading = reading
            self._forwards.readings.add(work)
        while work.reading is not None:
            self.advance(work)
        if work.failure is None:
            return work.drift
        if is_out_of_memory(work.failure):
            raise EngineError(out_of_memory_sentence(self.model.device, len(reading.rows))) from None
        sentence = f"The model failed while it read the answer: {first_line(work.failure)}."
        raise EngineError(sentence) from work.failure

    def leave(self, ticket: QueuePlace, work: Work | None) -> None:
        """The caller goes, whether its work is done or not."""
        with self.line.changed:
            ticket.leave()
            if work in self._forwards.works:
                self._forwards.works.remove(work)
                if not self._leading:
                    self._forwards.tidy()
                self.line.changed.notify_all()

    def read_prompt(self, answer: Draft) -> None:
        """Read a prompt for its routing alone; the caller has the model."""
        self._forwards.read_prompt(answer)
