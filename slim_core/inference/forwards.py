# SPDX-License-Identifier: Apache-2.0
"""The batches of all running works, and the next forward of one of them.

Forwards that read (prompts, or an answer for its drift) and forwards that write take turns.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from threading import Condition

import torch
from transformers import PreTrainedModel

from ..base.errors import is_failure, is_out_of_memory, out_of_memory_sentence
from ..peft_tools import RowScopes
from .batch import Batch, together
from .draft import Draft, Work
from .groups import alike, in_groups
from .kept import KeptRows
from .log_probs import of_chosen
from .next_token import choose
from .readings import Readings
from .types import TokenLogProb


NOT_A_NUMBER = (
    "The model's outputs are no longer finite, so no next token can be chosen: its adapter may be broken or made for "
    "another base."
)


class Forwards:
    """Makes forwards; one thread at a time calls `step`.

    Args:
        model: the base model with its adapters.
        lock: under which works change.
        together: whether texts of several callers may share a batch.
        kept: rows that have ended, for prompts that go on from them.

    Attributes:
        works: the running works; changed under the lock.
        readings: answers that are to be read.
        column_bytes: memory of one token of one row in a cache; 0 until something was read.
    """

    def __init__(self, model: PreTrainedModel, lock: Condition, together: bool, kept: KeptRows) -> None:
        self._model, self._lock, self._kept = model, lock, kept
        self.works: list[Work] = []
        self.readings = Readings(lock, together)
        self.column_bytes = 0.0
        self._scopes = RowScopes(model)
        self._prompts: deque[Batch] = deque()
        self._batches: deque[Batch] = deque()
        self._begun: list[Work] = []
        self._has_read = False

    def close(self) -> None:
        """Release the model; no work is running, and none will be."""
        self._model = self._scopes = None  # type: ignore[assignment]

    def refresh(self) -> None:
        """An adapter was attached or detached; no work is running."""
        self._scopes = RowScopes(self._model)

    def read_prompt(self, answer: Draft) -> None:
        """Read a prompt only for its routing; no work is running."""
        batch = Batch(self._model, self._scopes, [answer])
        while batch.read_piece():
            pass
        batch.forward()
        batch.read_routing()

    def step(self) -> None:
        """At most one forward."""
        with self._lock:
            begun = [work for work in self.works if work.begin()]
        self._begun += begun
        if begun:
            return  # so that callers learn that their prompts are being read; meanwhile others may join
        reads = bool(self._begun or self._prompts or self.readings)
        if reads and not (self._has_read and self._batches):
            self._has_read = True
            self._form()
            if self._prompts:
                self._run(self._prompts, self._read)
            else:
                self.readings.step(self._model, self._scopes, self.works)
        elif self._batches:
            self._has_read = False
            self._run(self._batches, self._write)
        else:
            # Better an error than waiting forever.
            raise RuntimeError("A caller waits for a token, but nothing is being written.")

    def _form(self) -> None:
        """Form batches of the works that have begun; prompts of similar length share a batch."""
        with self._lock:
            begun = [work for work in self._begun if work in self.works and work.writing]
            self._begun = []
        for work in begun:
            self._begin_behind_kept(work.writing)
        new = [work for work in begun if not any(draft.start for draft in work.writing)]
        going_on = [work for work in begun if work not in new]
        for works in (*in_groups(new, _lengths), *in_groups(going_on, _lengths, _unread)):
            drafts = [draft for work in works for draft in work.writing]
            try:
                self._prompts.append(Batch(self._model, self._scopes, drafts))
                for draft in drafts:
                    draft.start = None
            except BaseException as error:
                with self._lock:
                    for work in works:
                        work.end(error)
                if not is_failure(error):
                    raise

    def _begin_behind_kept(self, drafts: Sequence[Draft]) -> None:
        starts = self._kept.starts(drafts, self._scopes.openings, self._scopes.traceable)
        for draft, start in zip(drafts, starts, strict=True):
            draft.start = start
            if start is not None and draft.routing and start.routing is not None:
                draft.records.append(start.routing)

    def _writers(self) -> dict[Draft, Work]:
        return {draft: work for work in self.works for draft in work.writing}

    def tidy(self) -> None:
        """Drop batches that have no rows left. Nobody is making a forward, and the caller has the lock."""
        writers = self._writers()
        for batches in (self._prompts, self._batches):
            finished = [batch for batch in batches if not any(answer in writers for answer in batch.answers)]
            for batch in finished:
                batches.remove(batch)
        self.readings.tidy(self.works)

    def _run(self, batches: deque[Batch], forward: Callable[[Batch, dict[Draft, Work]], None]) -> None:
        """Run a forward of the first batch. A failure that one caller caused ends only that caller's answers."""
        with self._lock:
            writers = self._writers()
        batch = batches.popleft()
        remaining = [row for row, answer in enumerate(batch.answers) if answer in writers]
        if not remaining:
            return
        out_of_memory, failure = False, None
        try:
            if len(remaining) < len(batch.answers):
                batch = together([(batch, remaining)])
            forward(batch, writers)
        except BaseException as error:
            if not is_failure(error):
                batches.appendleft(batch)  # for the others; an interrupt ends the caller that made the forward
                raise
            if is_out_of_memory(error):
                out_of_memory = True
            else:
                failure = error
        # Outside the handler, since its traceback keeps the tensors alive.
        if out_of_memory:
            self._end_latest(batches, batch, writers)
        elif failure is not None:
            self._divide(batches, batch, writers, failure)

    def _end_latest(self, batches: deque[Batch], batch: Batch, writers: dict[Draft, Work]) -> None:
        """Memory ran out: free the kept rows, or else end the answers of the latest caller."""
        works = self._works_of(batch, writers)
        if self._kept:
            self._kept.clear()
            batches.appendleft(batch)
            self._empty_cache()
            return
        with self._lock:
            latest = max(works, key=lambda work: self.works.index(work) if work in self.works else -1)
            drafts = [answer for answer in batch.answers if writers.get(answer) is latest and not answer.done]
            for answer in drafts:
                answer.end("error", out_of_memory_sentence(self._model.device, len(drafts)))
            batch.read_routing(drafts)
            latest.settle()
            latest.new_routing = True
        if len(works) > 1:
            batches.appendleft(batch)
        del batch
        self._empty_cache()

    def _empty_cache(self) -> None:
        if self._model.device.type == "cuda":
            torch.cuda.empty_cache()

    def _divide(self, batches: deque[Batch], batch: Batch, writers: dict[Draft, Work], failure: BaseException) -> None:
        """The model has failed: each caller gets a separate batch; one that is alone in its batch gets the error."""
        works = self._works_of(batch, writers)
        if len(works) == 1:
            with self._lock:
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
            self._start_writing(batch)
            return
        self._prompts.append(batch)
        with self._lock:
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
        with self._lock:
            for answer, work, token, is_finite, log_prob in zip(
                batch.answers, works, ids, finite, log_probs, strict=True
            ):
                if not is_finite:
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
        self._keep(batch, writers)

    def _keep(self, batch: Batch, writers: Mapping[Draft, Work]) -> None:
        """Keep the rows that have ended with this token."""
        if not self._kept.most_bytes:
            return
        for answer in batch.answers:
            if writers[answer].keep and answer.done and answer.finish_reason != "error":
                row = batch.kept(answer)
                if row is not None:
                    self._kept.keep(row)

    def _start_writing(self, batch: Batch) -> None:
        """Prompts have been read: their rows join a batch of similar length that is being written, if there is one."""
        self.column_bytes = self.column_bytes or batch.column_bytes
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
                    break  # they stay separate batches
                self._batches.remove(other)
                self._batches.append(joined)
                return
        self._batches.append(batch)


def _lengths(work: Work) -> list[int]:
    return [len(draft.prompt) for draft in work.writing]


def _unread(work: Work) -> list[int]:
    return [len(draft.prompt) - (draft.start.length if draft.start else 0) for draft in work.writing]


def _take(answer: Draft, token: int, work: Work, log_prob: TokenLogProb | None) -> None:
    try:
        answer.take(token, work.end_tokens, log_prob)
    except BaseException as error:  # a tokenizer may panic over one token
        if not is_failure(error):
            raise
        work.end(error)
