# SPDX-License-Identifier: Apache-2.0
"""Many callers, one model: their rows share batches, and rows join and leave a batch between two forwards.

A caller that waits for its answers asks for the next forward for everybody, unless one is running already. Where it is
the only one, it runs the forward itself and has no overhead. Where there are several, one thread runs the forwards of
all: a thread that has multiplied matrices keeps MKL's buffers, about a megabyte, and has OpenMP threads of its own, so
that memory would grow with the number of callers. A forked process, which has only the thread that forked, starts
another. Forwards that read (prompts, or an answer for its drift) and forwards that write take turns.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
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
# Share of the memory that is free when the model is loaded, for caches; the rest is for adapters and activations.
SHARE_OF_MEMORY = 0.5


class Scheduler:
    """Decides who is answered now, and in which batch. Any thread may call any method.

    Args:
        model: the base model with its adapters.

    Attributes:
        model: the base model with its adapters.
        queue: callers that wait to be answered, or to have the model to themselves.
        most_rows: how many rows are written at once; more only if all are one caller's.
        kept: rows that have ended, for prompts that go on from them.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.queue = FairQueue()
        shares = is_growing(growing_cache(model.config)) and not positions_vary(model.config)
        self.most_rows = MOST_ROWS if shares else 0
        free, _ = device_memory(model.device)
        self._most_bytes = None if free is None else SHARE_OF_MEMORY * free
        self.kept = KeptRows(possible=shares)
        self._start()

    def _start(self) -> None:
        self._forwards = Forwards(self.model, self.queue.changed, self.most_rows > 0, self.kept)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="forwards")
        self._forward_running = False
        self._waiting_between = 0
        self._process = os.getpid()

    def close(self) -> None:
        """Release the model; the caller has it to itself."""
        self.model = None  # type: ignore[assignment]
        self._forwards.close()
        self._thread.shutdown(wait=False)
        self.kept.clear()

    def refresh(self) -> None:
        """An adapter was attached or detached; the caller has the model to itself."""
        self.kept.clear()
        self._forwards.refresh()

    # -- the queue ----------------------------------------------------------------------------------------------

    def join(self, visitor: Hashable = None) -> QueuePlace:
        """Join the queue; whoever joins must `leave` it or be let in by `enter`. For visitors see `FairQueue.join`."""
        place = self.queue.join(visitor)
        with self.queue.changed:
            if self._process != os.getpid():
                self._start()  # as the queue does
        return place

    def enter(self, place: QueuePlace, work: Work, seconds: float, check: Callable[[], None] = lambda: None) -> bool:
        """Wait for the turn and for room. A caller that is let in must call `leave`.

        Args:
            place: the place in the queue.
            work: what is asked for.
            seconds: the longest to wait.
            check: called when there is room, before any other thread sees the work.

        Returns:
            Whether the work was let in.
        """
        with self.queue.changed:
            if not place.wait(seconds, lambda: self._has_room(work)):
                return False
            check()
            self._forwards.works.append(work)
            place.leave()
            return True

    def _has_room(self, work: Work) -> bool:
        works = self._forwards.works
        if not works:
            return True
        if self.most_rows < work.rows + sum(other.rows for other in works):
            return False
        needed_bytes = sum(running.rows * running.columns for running in (work, *works)) * self._forwards.column_bytes
        return self._most_bytes is None or needed_bytes <= self._most_bytes

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Wait in the queue until nobody is answered, and have the model for the duration of a `with` block."""
        place = self.join()
        try:
            place.wait(None, lambda: not self._forwards.works)
            yield
        finally:
            place.leave()

    def exclusive_if_free(self) -> QueuePlace | None:
        """Have the model to itself until the returned place is left; None if somebody is waiting or being answered."""
        place = self.join()
        if place.wait(0, lambda: not self._forwards.works):
            return place
        place.leave()
        return None

    @property
    def busy(self) -> int:
        """How many callers are being answered or waiting."""
        with self.queue.changed:
            return len(self._forwards.works) + len(self.queue)

    # -- what a caller does --------------------------------------------------------------------------------------

    def advance(self, work: Work) -> None:
        """Return when the work has changed, having forwards run while no other caller does."""
        while True:
            with self.queue.changed:
                # A caller in `between` goes first, or it might never get a turn.
                self.queue.changed.wait_for(
                    lambda: work.changed or not (self._forward_running or self._waiting_between)
                )
                if work.changed:
                    work.changed = False
                    return
                self._forward_running = True
                alone = len(self._forwards.works) == 1
            if alone:
                self._step()
                continue
            try:
                forward = self._thread.submit(self._step)
            except RuntimeError:  # the process is ending, and no thread can be started any more
                self._step()
            else:
                forward.result()

    def _step(self) -> None:
        """At most one forward, for the caller that has said that one is running."""
        try:
            self._forwards.step()
        finally:
            self._forward_done()

    def _forward_done(self) -> None:
        with self.queue.changed:
            self._forward_running = False
            self._forwards.tidy()
            self.queue.changed.notify_all()

    @contextmanager
    def between(self) -> Iterator[None]:
        """Have the model for one forward between those of others, for a caller whose work was let in."""
        with self.queue.changed:
            self._waiting_between += 1
            try:
                self.queue.changed.wait_for(lambda: not self._forward_running)
                self._forward_running = True
            finally:
                self._waiting_between -= 1
        try:
            yield
        finally:
            self._forward_done()

    def read(self, work: Work, reading: AnswerReading) -> DriftTensors | None:
        """Read an answer between the forwards of others, for a work that was let in and has none to write.

        Returns:
            None if it was stopped.

        Raises:
            EngineError: if memory runs out or the model fails.
        """
        with self.queue.changed:
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

    def leave(self, place: QueuePlace, work: Work | None) -> None:
        """End a call, whether its work is done or not."""
        with self.queue.changed:
            place.leave()
            if work in self._forwards.works:
                self._forwards.works.remove(work)
                if not self._forward_running:
                    self._forwards.tidy()
                self.queue.changed.notify_all()

    def read_prompt(self, answer: Draft) -> None:
        """Read a prompt only for its routing; the caller has the model to itself."""
        self._forwards.read_prompt(answer)
