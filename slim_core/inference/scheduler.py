# SPDX-License-Identifier: Apache-2.0
"""Many callers, one model: the rows of all of them in shared batches, which rows join and leave between two forwards.

There is no thread of its own. A caller that waits for its answers makes the next forward for everybody, unless another
one is at it: so an answer costs what it costs alone where nobody else asks, and a process that forks leaves nothing
behind. Forwards that read (prompts, or an answer for its drift) and forwards that write take turns.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from ..base.devices import device_memory
from ..base.errors import EngineError, is_failure, is_out_of_memory, out_of_memory_sentence
from ..outside.errors import first_line
from ..peft_tools import RowScopes
from .batch import Batch, together
from .cache import growing_cache, is_growing, positions_vary
from .draft import Draft, Work
from .drift import AnswerReading, Found
from .fair_queue import FairQueue, QueuePlace
from .groups import alike, in_groups
from .log_probs import of_chosen
from .next_token import choose
from .readings import Readings
from .types import TokenLogProb


NOT_A_NUMBER = (
    "The model's outputs are no longer finite, so no next token can be chosen: its adapter may be broken or made for "
    "another base."
)
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
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.line = FairQueue()
        shares = is_growing(growing_cache(model.config)) and not positions_vary(model.config)
        self.most_rows = MOST_ROWS if shares else 0
        free, _ = device_memory(model.device)
        self._most_bytes = None if free is None else SHARE_OF_MEMORY * free
        self._column_bytes = 0.0
        self._scopes = RowScopes(model)
        self._start()

    def _start(self) -> None:
        self._works: list[Work] = []
        self._prompts: deque[Batch] = deque()
        self._batches: deque[Batch] = deque()
        self._begun: list[Work] = []
        self._readings = Readings(self.line.changed, together=self.most_rows > 0)
        self._leading = self._has_read = False
        self._between = 0
        self._process = os.getpid()

    def close(self) -> None:
        """Let go of the model; the caller has it alone."""
        self.model = self._scopes = None  # type: ignore[assignment]

    def refresh(self) -> None:
        """An adapter has come or gone; the caller has the model alone."""
        self._scopes = RowScopes(self.model)

    # -- who may come --------------------------------------------------------------------------------------------

    def join(self) -> QueuePlace:
        """Get in line; whoever joins leaves it, or is let in by `enter`."""
        ticket = self.line.join()
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
            self._works.append(work)
            ticket.leave()
            return True

    def _has_room(self, work: Work) -> bool:
        if not self._works:
            return True
        if self.most_rows < work.rows + sum(other.rows for other in self._works):
            return False
        wanted = sum(each.rows * each.columns for each in (work, *self._works)) * self._column_bytes
        return self._most_bytes is None or wanted <= self._most_bytes

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait in line until nobody is answered, and have the model for the duration of a `with` block."""
        ticket = self.join()
        try:
            ticket.wait(None, lambda: not self._works)
            yield
        finally:
            ticket.leave()

    def alone_if_free(self) -> QueuePlace | None:
        """Have the model until the place is left, if nobody waits or is answered; None if somebody is."""
        ticket = self.join()
        if ticket.wait(0, lambda: not self._works):
            return ticket
        ticket.leave()
        return None

    @property
    def busy(self) -> int:
        """How many are answered or wait in line."""
        with self.line.changed:
            return len(self._works) + len(self.line)

    # -- what a caller does --------------------------------------------------------------------------------------

    def advance(self, work: Work) -> None:
        """Return when something of the work has changed, making forwards as long as nobody else does."""
        while True:
            with self.line.changed:
                # Who waits to make a forward between two steps goes first, or might never get a turn.
                self.line.changed.wait_for(lambda: work.changed or not (self._leading or self._between))
                if work.changed:
                    work.changed = False
                    return
                self._leading = True
            try:
                self._step()
            finally:
                self._led()

    def _led(self) -> None:
        with self.line.changed:
            self._leading = False
            self._tidy()
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

    def read(self, work: Work, reading: AnswerReading) -> Found | None:
        """Read an answer between the forwards of others, for a work that was let in and has none to write.

        Returns:
            None if it was stopped.

        Raises:
            EngineError: if memory runs out or the model fails.
        """
        with self.line.changed:
            work.reading = reading
            self._readings.add(work)
        while work.reading is not None:
            self.advance(work)
        if work.failure is None:
            return work.found
        if is_out_of_memory(work.failure):
            raise EngineError(out_of_memory_sentence(self.model.device, len(reading.rows))) from None
        sentence = f"The model failed while it read the answer: {first_line(work.failure)}."
        raise EngineError(sentence) from work.failure

    def leave(self, ticket: QueuePlace, work: Work | None) -> None:
        """The caller goes, whether its work is done or not."""
        with self.line.changed:
            ticket.leave()
            if work in self._works:
                self._works.remove(work)
                if not self._leading:
                    self._tidy()
                self.line.changed.notify_all()

    def read_prompt(self, answer: Draft) -> None:
        """Read a prompt for its routing alone; the caller has the model."""
        batch = Batch(self.model, self._scopes, [answer])
        while batch.read_piece():
            pass
        batch.forward()
        batch.read_routing()

    # -- a step, by one caller for all ---------------------------------------------------------------------------

    def _step(self) -> None:
        """At most one forward."""
        with self.line.changed:
            begun = [work for work in self._works if work.begin()]
        self._begun += begun
        if begun:
            return  # so that their callers hear that they are read; meanwhile others may come
        reads = bool(self._begun or self._prompts or self._readings)
        if reads and not (self._has_read and self._batches):
            self._has_read = True
            self._form()
            if self._prompts:
                self._run(self._prompts, self._read)
            else:
                self._readings.step(self.model, self._scopes, self._works)
        elif self._batches:
            self._has_read = False
            self._run(self._batches, self._write)
        else:
            # Better than to wait for ever.
            raise RuntimeError("Somebody waits for a token, but nothing is being written.")

    def _form(self) -> None:
        """Batches of those who have begun; prompts of about one length are read as one."""
        with self.line.changed:
            begun = [work for work in self._begun if work in self._works and work.writing]
            self._begun = []
        for works in in_groups(begun, lambda work: [len(draft.prompt) for draft in work.writing]):
            drafts = [draft for work in works for draft in work.writing]
            try:
                self._prompts.append(Batch(self.model, self._scopes, drafts))
            except BaseException as error:
                with self.line.changed:
                    for work in works:
                        work.end(error)
                if not is_failure(error):
                    raise

    def _writers(self) -> dict[Draft, Work]:
        return {draft: work for work in self._works for draft in work.writing}

    def _tidy(self) -> None:
        """Let go of batches in which nobody is left. Nobody is making a forward, and the caller has the lock."""
        writers = self._writers()
        for batches in (self._prompts, self._batches):
            gone = [batch for batch in batches if not any(answer in writers for answer in batch.answers)]
            for batch in gone:
                batches.remove(batch)
        self._readings.tidy(self._works)

    def _run(self, batches: deque[Batch], forward: Callable[[Batch, dict[Draft, Work]], None]) -> None:
        """A forward of the first of some batches. What fails for one caller ends that one's answers alone."""
        with self.line.changed:
            writers = self._writers()
        batch = batches.popleft()
        kept = [row for row, answer in enumerate(batch.answers) if answer in writers]
        if not kept:
            return
        out_of_memory, failure = False, None
        try:
            if len(kept) < len(batch.answers):
                batch = together([(batch, kept)])
            forward(batch, writers)
        except BaseException as error:
            if not is_failure(error):
                batches.appendleft(batch)  # for the others; who made the forward is ended by it
                raise
            if is_out_of_memory(error):
                out_of_memory = True
            else:
                failure = error
        # Outside of the handler, whose traceback holds on to the tensors.
        if out_of_memory:
            self._run_out(batches, batch, writers)
        elif failure is not None:
            self._divide(batches, batch, writers, failure)

    def _run_out(self, batches: deque[Batch], batch: Batch, writers: dict[Draft, Work]) -> None:
        """The memory was used up: who came last gives theirs back."""
        works = self._works_of(batch, writers)
        with self.line.changed:
            latest = max(works, key=lambda work: self._works.index(work) if work in self._works else -1)
            mine = [answer for answer in batch.answers if writers.get(answer) is latest and not answer.done]
            for answer in mine:
                answer.end("error", out_of_memory_sentence(self.model.device, len(mine)))
            batch.read_routing(mine)
            latest.settle()
            latest.new_routing = True
        if len(works) > 1:
            batches.appendleft(batch)
        del batch
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()

    def _divide(self, batches: deque[Batch], batch: Batch, writers: dict[Draft, Work], failure: BaseException) -> None:
        """The model has failed: each caller gets a batch alone, or the failure if that is how it is already."""
        works = self._works_of(batch, writers)
        if len(works) == 1:
            with self.line.changed:
                works[0].end(failure)
            return
        batch.read_routing()
        for work in works:
            batches.append(together([(batch, [i for i, a in enumerate(batch.answers) if writers.get(a) is work])]))

    @staticmethod
    def _works_of(batch: Batch, writers: dict[Draft, Work]) -> list[Work]:
        return list(dict.fromkeys(writers[answer] for answer in batch.answers if answer in writers))

    # -- forwards ------------------------------------------------------------------------------------------------

    def _read(self, batch: Batch, writers: dict[Draft, Work]) -> None:
        """A piece of some prompts, or the rest of them and their first tokens."""
        if not batch.read_piece(shared=bool(self._batches)):
            self._next_token(batch, writers)
            self._put(batch)
            return
        self._prompts.append(batch)
        with self.line.changed:
            for answer in batch.answers:
                if writers[answer].stopped(answer.index):
                    answer.end("stopped")
            for work in self._works_of(batch, writers):
                work.settle()

    def _write(self, batch: Batch, writers: dict[Draft, Work]) -> None:
        """The next token of all rows of a batch."""
        self._next_token(batch, writers)
        self._batches.append(batch)

    def _next_token(self, batch: Batch, writers: dict[Draft, Work]) -> None:
        works = [writers[answer] for answer in batch.answers]
        logits = batch.forward()
        tokens, ids, finite = choose(works, batch.answers, logits)
        log_probs = of_chosen(batch.answers, logits, ids)
        batch.append(tokens)
        with self.line.changed:
            for answer, work, token, fine, log_prob in zip(batch.answers, works, ids, finite, log_probs, strict=True):
                if not fine:
                    answer.end("error", NOT_A_NUMBER)
                elif work.stopped(answer.index):
                    answer.end("stopped")
                else:
                    _take(answer, token, work, log_prob)
            for work in dict.fromkeys(works):
                if work.wants_routing(any(draft.done for draft in work.writing)):
                    batch.read_routing(work.writing)
                    work.new_routing = True
                work.settle()

    def _put(self, batch: Batch) -> None:
        """Prompts are read: their rows join a batch that is being written, where there is one of their length."""
        self._column_bytes = self._column_bytes or batch.column_bytes
        rows = [row for row, answer in enumerate(batch.answers) if not answer.done]
        for other in self._batches if rows else ():
            others = [row for row, answer in enumerate(other.answers) if not answer.done]
            lengths = [*(batch.lengths[row] for row in rows), *(other.lengths[row] for row in others)]
            if others and batch.joins and alike(lengths):
                try:
                    joined = together([(other, others), (batch, rows)])
                except Exception as error:
                    if not is_out_of_memory(error):
                        raise
                    break  # each goes on where it is
                self._batches.remove(other)
                self._batches.append(joined)
                return
        self._batches.append(batch)


def _take(answer: Draft, token: int, work: Work, log_prob: TokenLogProb | None) -> None:
    try:
        answer.take(token, work.end_tokens, log_prob)
    except BaseException as error:  # a tokenizer may panic over one token
        if not is_failure(error):
            raise
        work.end(error)
