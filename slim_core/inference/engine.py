# SPDX-License-Identifier: Apache-2.0
"""The engine: one base model, its adapters, and the queue for them."""

from __future__ import annotations

import gc
from collections.abc import Generator, Hashable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import overload

import torch
from transformers import PreTrainedModel

from ..adapters import Adapter, describe_base
from ..base.devices import device_memory
from ..base.errors import EngineError, is_failure
from ..base.prompts import Prompts
from ..outside.errors import first_line
from .cpu_linear import use_faster_linears
from .describe import bytes_by_device, end_tokens
from .draft import Draft, Work, waiting_step
from .drift import answer_to_read
from .questions import end_unknown
from .reader import WAITING_SECONDS, Reader
from .records import routing_of
from .sampling import check_sampling
from .stops import Stops
from .types import (
    Drift,
    Kind,
    MemoryUse,
    Reading,
    RoutingRecord,
    Row,
    Sampling,
    Step,
    Variant,
)
from .variants import BASE, Adapters, check_variants, new_name, opened_adapter


class Engine(Reader):
    """Answers of a base model and its adapters, several at a time as the rows of one batch.

    Any thread may call any method. Answers of several callers are rows of shared batches (`scheduler`). Callers that
    find no room, or need the model to themselves, wait in one queue, in which visitors take turns. An open `answer`
    generator occupies its room, so finish or close it before attaching or detaching in the same thread.

    Args:
        model: the base model without adapters, in evaluation mode.
        prompts: how it reads conversations.
        name: what people call it; its folder or Hub id.

    Attributes:
        shapes: what an adapter has to fit.
        end_tokens: tokens that end an answer.
        held: by device, bytes that `close` gives back.
    """

    def __init__(self, model: PreTrainedModel, prompts: Prompts, name: str) -> None:
        super().__init__(model, prompts, name)
        self._adapters = Adapters(model)
        self.shapes = describe_base(model, name)
        use_faster_linears(model)
        self._device = model.device
        self.end_tokens = end_tokens(model, prompts)
        self.held = bytes_by_device(model)

    # -- variants ------------------------------------------------------------------------------------------------

    def attach(
        self,
        adapter: Adapter | str | Path,
        *,
        name: str | None = None,
        kind: Kind | None = None,
        label: str | None = None,
    ) -> Variant:
        """Attach an adapter that passes every check; waits in the queue, so that no answer is disturbed.

        Args:
            adapter: a checked one, whose files stay with its owner; or a folder or Hub id, named by the operator,
                which is checked here.
            name: unique in the engine; None for its kind, numbered where that is taken.
            kind: "lora" or "slim"; None takes either.
            label: its name for people; None for "LoRA", "DoRA" or "SLIM".

        Raises:
            EngineError: if a check fails, it is of another kind, or memory does not suffice; the engine is as before.
        """
        if isinstance(adapter, Adapter):
            return self._attach(adapter, name, kind, label)
        opened = opened_adapter(adapter, self.shapes)
        try:
            return self._attach(opened, name, kind, label)
        except EngineError as error:
            raise EngineError(f"The adapter {adapter} cannot be attached: {error}") from None
        finally:
            opened.delete()

    def _attach(self, adapter: Adapter, name: str | None, kind: Kind | None, label: str | None) -> Variant:
        if kind is not None and kind != adapter.kind:
            raise EngineError(f"It is a {adapter.kind} adapter, not {kind}.")
        with self._scheduler.exclusive():
            self._check_open()
            name = new_name(name, adapter.kind, self.variants)
            try:
                self._adapters.attach(adapter, name)
                variant = self._adapters.variant(adapter, name, label or adapter.title)
                self.variants = (*self.variants, variant)
            finally:
                self._modules_changed()
        return variant

    def detach(self, name: str) -> None:
        """Detach an adapter; waits in the queue.

        Raises:
            EngineError: if there is no adapter of that name.
        """
        with self._scheduler.exclusive():
            self._check_open()
            if name == BASE or name not in {variant.name for variant in self.variants}:
                raise EngineError(f"There is no adapter named {name!r}.")
            self._adapters.detach(name)
            self.variants = tuple(variant for variant in self.variants if variant.name != name)
            self._modules_changed()

    def _modules_changed(self) -> None:
        self._scheduler.refresh()
        self.held = bytes_by_device(self._model)

    def memory(self) -> MemoryUse:
        """Used and free memory on the model's device; for a model on several devices, on the first."""
        free, total = device_memory(self._device)
        adapters = {v.name: v.bytes for v in self.variants[1:]}
        return MemoryUse(self.info.bytes, adapters, free, total, self._scheduler.kept.bytes)

    def close(self, sentence: str) -> None:
        """Release the model's memory. Answers that are being written end as if they had been stopped.

        It waits until they have. Callers in the queue, and later ones, get the sentence.

        Args:
            sentence: why there is no answer, and until when.
        """
        self._closed = sentence
        with self._scheduler.exclusive():
            # `_check_open` keeps every caller from reading them from now on.
            self._model = self._adapters = None  # type: ignore[assignment]
            self._scheduler.close()
        self._prompts.close()
        # Adapters and the hooks on the model hold each other.
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    # -- answers -------------------------------------------------------------------------------------------------

    def peek(self, row: Row) -> RoutingRecord | None:
        """The routing of a prompt, without an answer. It delays an answer by one reading at most.

        Args:
            row: the variant and the conversation; its routing is recorded in any case.

        Returns:
            None if the model is busy, or if the variant is the base.

        Raises:
            EngineError: if the variant is unknown, the prompt is empty or too long, or the model fails.
        """
        place = self._scheduler.exclusive_if_free()
        if place is None:
            return None
        try:
            self._check_open()
            (answer,) = self._prepare([replace(row, routing=True)], Sampling(max_new_tokens=1))
            check_variants([row.variant], self.variants)
            if answer.error is not None:
                raise EngineError(answer.error)
            self._scheduler.read_prompt(answer)
            return self._record(row, answer, []) if answer.records else None
        except BaseException as error:
            if isinstance(error, EngineError) or not is_failure(error):
                raise
            raise EngineError(f"The model failed while it read the prompt: {first_line(error)}.") from error
        finally:
            place.leave()

    @overload
    def answer(
        self,
        rows: Sequence[Row],
        sampling: Sampling,
        stops: Stops | None = None,
        *,
        batched: bool = True,
        routing_every: float = 0.4,
        reading: None = None,
        visitor: Hashable = None,
        keep: bool = True,
    ) -> Generator[Step, None, None]: ...

    @overload
    def answer(
        self,
        rows: Sequence[Row],
        sampling: Sampling,
        stops: Stops | None = None,
        *,
        batched: bool = True,
        routing_every: float = 0.4,
        reading: Reading | None = None,
        visitor: Hashable = None,
        keep: bool = True,
    ) -> Generator[Step | Drift, None, None]: ...

    def answer(
        self,
        rows: Sequence[Row],
        sampling: Sampling,
        stops: Stops | None = None,
        *,
        batched: bool = True,
        routing_every: float = 0.4,
        reading: Reading | None = None,
        visitor: Hashable = None,
        keep: bool = True,
    ) -> Generator[Step | Drift, None, None]:
        """Answer all rows.

        The generator joins the queue at its first step. While it waits it yields about twice a second; then once when
        the prompts are read, after every token, and at the end. Where others are answered too, several tokens may have
        come between two steps. Closing it frees its room at once. What is wrong with one row (its prompt is empty or
        too long, its numbers are not finite, memory ran out) ends that row with a sentence and no other.

        Args:
            rows: the answers that are wanted.
            sampling: how tokens are chosen, for all rows.
            stops: flags with which rows are stopped; one for each row.
            batched: all at once; False writes one after the other, with the same tokens.
            routing_every: seconds between two fillings of `Step.routing`.
            reading: which variants read the base's answer afterwards, without waiting again. Where there is one, the
                last that is yielded is its drift.
            visitor: who asks; in the queue visitors take turns. None for one who asks for one answer at a time.
            keep: whether a later prompt may go on from these answers (`keep_at_most`); False where none will.

        Raises:
            EngineError: if there is no row, a setting is out of its range, or the model fails; after the answers, as
                `drift`.
        """
        if not rows:
            raise EngineError("No answer was requested: name at least one variant.")
        if stops is not None and len(stops) != len(rows):
            raise EngineError(f"There are {len(rows)} answers but stop flags for {len(stops)}.")
        check_sampling(sampling)
        return self._answer(tuple(rows), sampling, stops, batched, routing_every, reading, visitor, keep)

    def _answer(
        self,
        rows: tuple[Row, ...],
        sampling: Sampling,
        stops: Stops | None,
        batched: bool,
        routing_every: float,
        reading: Reading | None,
        visitor: Hashable,
        keep: bool,
    ) -> Generator[Step | Drift, None, None]:
        def stopped(row: int) -> bool:
            return self._closed is not None or (stops is not None and stops.stopped(row))

        place = self._scheduler.join(visitor)
        work: Work | None = None
        try:
            self._check_open()
            drafts = self._prepare(rows, sampling)
            work = Work(drafts, sampling, self.end_tokens, stopped, batched, routing_every, keep)
            # While it waits, adapters may go; from then on none does.
            check = partial(end_unknown, rows, work.drafts, lambda: self.variants)
            seconds = 0.0
            while not self._scheduler.enter(place, work, seconds, check):
                self._check_open()
                # Callers that are being answered are ahead of it too.
                step = waiting_step(rows, stopped, place.ahead + 1)
                yield step
                if step.done:
                    return
                seconds = WAITING_SECONDS
            self._check_open()
            while not work.written:
                self._scheduler.advance(work)
                work.check()
                if not work.written:
                    yield self._step(rows, work, work.new_routing)
            last: Step | Drift = self._step(rows, work, True)
            assert isinstance(last, Step)
            if reading is not None and (ids := answer_to_read(last, reading, BASE)):
                # A stopped answer is read as far as it was written; only a stop from now on ends the reading.
                unstopped = [index for index in range(len(rows)) if not stopped(index)]
                yield last
                self._check_open()

                def unwanted() -> bool:
                    return self._closed is not None or (bool(unstopped) and all(map(stopped, unstopped)))

                last = self._read(work, ids, reading, unwanted) or last
        finally:
            self._scheduler.leave(place, work)
        # After the `finally`, since a caller that sees the last step may ask for more in the same thread.
        yield last

    def _prepare(self, rows: Sequence[Row], sampling: Sampling) -> list[Draft]:
        return self._questions.drafts(rows, sampling, self.variants, self.info.context_length)

    def _step(self, rows: Sequence[Row], work: Work, with_routing: bool) -> Step:
        with self._scheduler.queue.changed:
            states = tuple(draft.shown(row.variant) for row, draft in zip(rows, work.drafts, strict=True))
            recorded = work.recorded() if with_routing else {}
        # Without the lock: a record takes longer than a token.
        return Step(states, routing={i: self._record(rows[i], work.drafts[i], states[i].token_ids) for i in recorded})

    def _record(self, row: Row, draft: Draft, ids: Sequence[int]) -> RoutingRecord:
        opening = self._adapters.opening(row.variant)
        only_in = partial(self._adapters.changes_only, row.variant)
        return routing_of(row.variant, draft.prompt, ids, draft.records, self._prompts, opening, only_in)
