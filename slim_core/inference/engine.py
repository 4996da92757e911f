# SPDX-License-Identifier: Apache-2.0
"""One base model, its variants, and a queue for them."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import cast, overload

import torch
from transformers import PreTrainedModel

from ..adapters import OPERATOR, Adapter, AdapterError, describe_base, named_source, open_adapter
from ..base.devices import device_memory
from ..base.errors import EngineError, is_failure
from ..base.messages import Message
from ..base.prompts import Prompts
from ..outside.errors import first_line
from .cpu_linear import use_onednn
from .decode import Draft, decode, read_prompt
from .describe import bytes_by_device, describe, end_tokens
from .detokenise import AnswerText, decoder_of
from .drift import StoppedReading, answer_to_read, drift_of
from .fair_queue import FairQueue
from .records import routing_of
from .sampling import Sampler, check_sampling
from .scoring import likelihoods
from .stops import Stops
from .types import (
    Drift,
    Kind,
    Likelihood,
    MemoryUse,
    Passage,
    Reading,
    RoutingRecord,
    Row,
    RowStep,
    Sampling,
    Step,
    Variant,
)
from .variants import BASE, Adapters, free_name, peft_name


log = logging.getLogger(__name__)
# How often waiting callers are told their place, in seconds.
WAITING_SECONDS = 0.5


class Engine:
    """Answers of a base model and its adapters, several at a time as the rows of one batch.

    Any thread may call any method. What needs the model waits in one line, first come, first served; an open `answer`
    generator holds the model, so finish or close it before asking for more in the same thread.

    Args:
        model: the base model without adapters, in evaluation mode.
        prompts: how it reads conversations.
        name: what people call it; its folder or Hub id.

    Attributes:
        info: what is loaded.
        variants: the base first, then the adapters in the order in which they came.
        shapes: what an adapter has to fit.
        end_tokens: tokens that end an answer.
        held: by device, bytes that `close` gives back.
    """

    def __init__(self, model: PreTrainedModel, prompts: Prompts, name: str) -> None:
        self._model = model.requires_grad_(False).eval()
        self._prompts = prompts
        self._decode = decoder_of(prompts.tokenizer)
        self._adapters = Adapters(model)
        self._queue = FairQueue()
        self.shapes = describe_base(model, name)
        use_onednn(model)
        self._device = model.device
        self._known = cast("int", model.get_input_embeddings().num_embeddings)
        self._closed: str | None = None
        self.end_tokens = end_tokens(model, self._prompts)
        self.info = describe(model, self._prompts, name)
        self.variants: tuple[Variant, ...] = (
            Variant(BASE, "base", "Base", self.info.parameters, self.info.bytes, self.info.dtype),
        )
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
        opened = self._open(adapter)
        try:
            return self._attach(opened, name, kind, label)
        except EngineError as error:
            raise EngineError(f"The adapter {adapter} cannot be attached: {error}") from None
        finally:
            opened.delete()

    def _open(self, source: str | Path) -> Adapter:
        try:
            found = open_adapter(named_source(source), self.shapes, limits=OPERATOR)
        except AdapterError as error:
            raise EngineError(f"The adapter {source} cannot be attached: {error}") from None
        for sentence in found.warnings:
            log.warning("%s: %s", source, sentence)
        return found

    def _attach(self, adapter: Adapter, name: str | None, kind: Kind | None, label: str | None) -> Variant:
        if kind is not None and kind != adapter.kind:
            raise EngineError(f"It is a {adapter.kind} adapter, not {kind}.")
        with self._queue.turn():
            self._check_open()
            taken = {variant.name for variant in self.variants}
            name = free_name(adapter.kind, taken) if name is None else name
            if name in taken:
                raise EngineError(f"There is a variant named {name!r} already: choose another name.")
            self._adapters.attach(adapter, name)
            variant = self._adapters.variant(adapter, name, label or adapter.title)
            self.variants = (*self.variants, variant)
            self.held = bytes_by_device(self._model)
        return variant

    def detach(self, name: str) -> None:
        """Detach an adapter; waits in the queue.

        Raises:
            EngineError: if there is no adapter of that name.
        """
        with self._queue.turn():
            self._check_open()
            if name == BASE or name not in {variant.name for variant in self.variants}:
                raise EngineError(f"There is no adapter named {name!r}.")
            self._adapters.detach(name)
            self.variants = tuple(variant for variant in self.variants if variant.name != name)
            self.held = bytes_by_device(self._model)

    def memory(self) -> MemoryUse:
        """Used and free memory on the model's device; for a model on several devices, on the first."""
        free, total = device_memory(self._device)
        return MemoryUse(self.info.bytes, {v.name: v.bytes for v in self.variants[1:]}, free, total)

    def close(self, sentence: str) -> None:
        """Release the model's memory. Answers that are being written end as if they had been stopped.

        It waits until they have. Callers in the queue, and later ones, get the sentence.

        Args:
            sentence: why there is no answer, and until when.
        """
        self._closed = sentence
        with self._queue.turn():
            # After `_check_open` nobody reads them.
            self._model = self._adapters = None  # type: ignore[assignment]
        self._prompts.close()
        # Adapters and the hooks on the model hold each other.
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _check_open(self) -> None:
        if self._closed is not None:
            raise EngineError(self._closed)

    # -- answers -------------------------------------------------------------------------------------------------

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Number of tokens in a conversation, up to where the answer begins.

        Raises:
            EngineError: if there is no question in it or the chat template refuses it.
        """
        return len(self._prompts.encode(messages))

    def peek(self, row: Row) -> RoutingRecord | None:
        """The routing of a prompt, without an answer. It delays an answer by one reading at most.

        Args:
            row: the variant and the conversation; its routing is recorded in any case.

        Returns:
            None if the model is busy, or if the variant is the base.

        Raises:
            EngineError: if the variant is unknown, the prompt is empty or too long, or the model fails.
        """
        ticket = self._queue.join_if_free()
        if ticket is None:
            return None
        try:
            self._check_open()
            answer = self._prepare(0, replace(row, routing=True), Sampling(max_new_tokens=1))
            if answer.error is not None:
                raise EngineError(answer.error)
            read_prompt(self._model, answer)
            if not answer.records:
                return None
            return routing_of(row.variant, answer, self._prompts, self._adapters.opening(row.variant))
        except BaseException as error:
            if isinstance(error, EngineError) or not is_failure(error):
                raise
            raise EngineError(f"The model failed while it read the prompt: {first_line(error)}.") from error
        finally:
            ticket.leave()

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
    ) -> Generator[Step | Drift, None, None]:
        """Answer all rows.

        The generator joins the queue at its first step. While it waits it yields about twice a second; then once when
        the prompts are read, after every token, and at the end. Closing it frees the model at once. What is wrong
        with one row (its prompt is empty or too long, its numbers are not finite, memory ran out) ends that row with
        a sentence and no other.

        Args:
            rows: the answers that are wanted.
            sampling: how tokens are chosen, for all rows.
            stops: flags with which rows are stopped; one for each row.
            batched: all at once; False writes one after the other, with the same tokens.
            routing_every: seconds between two fillings of `Step.routing`.
            reading: which variants read the base's answer afterwards, before the model is given up. Where there is
                one, the last that is yielded is its drift.

        Raises:
            EngineError: if there is no row, a setting is out of its range, or the model fails; after the answers, as
                `drift`.
        """
        if not rows:
            raise EngineError("No answer was requested: name at least one variant.")
        if stops is not None and len(stops) != len(rows):
            raise EngineError(f"There are {len(rows)} answers but stop flags for {len(stops)}.")
        check_sampling(sampling)
        return self._answer(tuple(rows), sampling, stops, batched, routing_every, reading)

    def _answer(
        self,
        rows: tuple[Row, ...],
        sampling: Sampling,
        stops: Stops | None,
        batched: bool,
        routing_every: float,
        reading: Reading | None,
    ) -> Generator[Step | Drift, None, None]:
        def stopped(row: int) -> bool:
            return self._closed is not None or (stops is not None and stops.stopped(row))

        ticket = self._queue.join()
        try:
            seconds = 0.0
            while not ticket.wait(seconds):
                self._check_open()
                waiting = tuple(
                    RowStep(row.variant, "done", finish_reason="stopped") if stopped(index) else RowStep(row.variant)
                    for index, row in enumerate(rows)
                )
                if all(row.state == "done" for row in waiting):
                    yield Step(waiting)
                    return
                yield Step(waiting, place=max(1, ticket.place))
                seconds = WAITING_SECONDS
            self._check_open()
            end = yield from self._write(rows, sampling, stopped, batched, routing_every)
            last: Step | Drift = end
            if reading is not None and (ids := answer_to_read(end, reading, BASE)):
                # What was written of a stopped answer is read; a stop that comes from now on ends the reading.
                wanted = [index for index in range(len(rows)) if not stopped(index)]
                yield last
                self._check_open()
                with suppress(StoppedReading):
                    last = self._read(
                        reading.messages,
                        ids,
                        reading.variants,
                        reading.strengths,
                        lambda: self._closed is not None or (bool(wanted) and all(map(stopped, wanted))),
                    )
        finally:
            ticket.leave()
        # After the `finally`, since a caller that sees the last step may ask for more in the same thread.
        yield last

    def _write(
        self,
        rows: tuple[Row, ...],
        sampling: Sampling,
        stopped: Callable[[int], bool],
        batched: bool,
        routing_every: float,
    ) -> Generator[Step, None, Step]:
        """Yields steps until all rows are done; returns the last one."""
        answers = [self._prepare(index, row, sampling) for index, row in enumerate(rows)]
        live = [answer for answer in answers if answer.state != "done"]
        for group in [live] if batched else [[answer] for answer in live]:
            for answer in group:
                if stopped(answer.index):
                    answer.end("stopped")
            group = [answer for answer in group if answer.state != "done"]
            if not group:
                continue
            try:
                steps = decode(self._model, group, Sampler(sampling), self.end_tokens, stopped, routing_every)
                with closing(steps):
                    for new_routing in steps:
                        for answer in answers:
                            if answer.state == "waiting" and stopped(answer.index):
                                answer.end("stopped")
                        if any(answer.state != "done" for answer in answers):
                            yield self._step(rows, answers, new_routing)
            except BaseException as error:
                if not is_failure(error):
                    raise
                raise EngineError(f"The model failed while it answered: {first_line(error)}.") from error
        return self._step(rows, answers, True)

    def _prepare(self, index: int, row: Row, sampling: Sampling) -> Draft:
        """Prepare a row for the decoding loop; an invalid row is already finished, with its error."""
        own = [v.ends_with for v in self.variants if v.name == row.variant and v.ends_with is not None]
        text = AnswerText(self._decode, (*sampling.stop, *own))
        answer = Draft(index, peft_name(row.variant), [], 0, text, row.routing, row.strength)
        try:
            self._check_variants([row.variant])
            answer.prompt = (
                self._prompts.encode(row.messages) if row.text is None else self._prompts.encode_plain(row.text)
            )
            self._check_known(answer.prompt)
            answer.limit = min(sampling.max_new_tokens, self._room(len(answer.prompt)))
        except EngineError as error:
            answer.end("error", str(error))
        return answer

    def _room(self, tokens: int) -> int:
        """How many tokens may follow a prompt of `tokens` tokens."""
        room = self.info.context_length - tokens
        if room < 1:
            raise EngineError(
                f"The conversation has {tokens} tokens, but the model reads and writes at most "
                f"{self.info.context_length}: shorten it, or start a new one."
            )
        return room

    def _check_known(self, tokens: Sequence[int]) -> None:
        """Check token ids: a tokenizer may have more tokens than its model, and on a GPU such an id would crash the
        process.
        """
        if max(tokens, default=0) >= self._known:
            raise EngineError(
                f"The chat template writes token {max(tokens)}, but the model knows {self._known}: use the tokenizer "
                "that belongs to this model."
            )

    def _check_variants(self, names: Sequence[str]) -> None:
        known = {variant.name for variant in self.variants}
        for name in names:
            if name not in known:
                raise EngineError(f"There is no variant named {name!r}: it may have been removed.")

    def _step(self, rows: tuple[Row, ...], answers: list[Draft], with_routing: bool) -> Step:
        states = tuple(answer.shown(row.variant) for row, answer in zip(rows, answers, strict=True))
        routing = {}
        if with_routing:
            routing = {
                answer.index: routing_of(row.variant, answer, self._prompts, self._adapters.opening(row.variant))
                for row, answer in zip(rows, answers, strict=True)
                if answer.records
            }
        return Step(states, routing=routing)

    # -- likelihood ----------------------------------------------------------------------------------------------

    def score(
        self,
        passages: Sequence[Passage],
        variants: Sequence[str],
        strengths: Sequence[float | None] = (),
        *,
        routing: bool = False,
    ) -> list[Likelihood]:
        """How likely the variants find given words; waits in the queue, and keeps the model until all are read.

        Args:
            passages: the words, each with what comes before.
            variants: names of the variants that read them.
            strengths: of the gate of each, as `Row.strength`; empty for their own.
            routing: whether the shares that went past LoRA are wanted.

        Raises:
            EngineError: if a passage is empty or too long, a variant is unknown, memory runs out, or the model fails.
        """
        if strengths and len(strengths) != len(variants):
            raise EngineError(f"There are {len(variants)} readers but {len(strengths)} strengths.")
        with self._queue.turn():
            self._check_open()
            self._check_variants(variants)
            pairs = [self._prompts.encode_passage(passage.before, passage.words) for passage in passages]
            for before, words in pairs:
                self._check_known([*before, *words])
                self._room(len(before) + len(words) - 1)
            return likelihoods(self._model, pairs, variants, strengths, routing)

    # -- drift ---------------------------------------------------------------------------------------------------

    def drift(
        self,
        messages: Sequence[Message],
        answer_ids: Sequence[int],
        variants: Sequence[str],
        strengths: Sequence[float | None] = (),
    ) -> Drift:
        """Let variants read the base's own answer; waits in the queue.

        Args:
            messages: the conversation that the base answered.
            answer_ids: T tokens of its answer (`RowStep.token_ids`).
            variants: names of the variants that read it.
            strengths: of the gate of each, as `Row.strength`; empty for their own.

        Raises:
            EngineError: if the answer is empty or too long, a variant is unknown, or memory runs out.
        """
        with self._queue.turn():
            self._check_open()
            return self._read(messages, answer_ids, variants, strengths, lambda: False)

    def _read(
        self,
        messages: Sequence[Message],
        answer_ids: Sequence[int],
        variants: Sequence[str],
        strengths: Sequence[float | None],
        stopped: Callable[[], bool],
    ) -> Drift:
        answer = list(answer_ids)
        if not answer:
            raise EngineError("The base's answer is empty, so there is nothing to read.")
        for token in answer:
            if not 0 <= token < self._known:
                raise EngineError(f"The model has no token {token}, so the model did not write this answer.")
        prompt = self._prompts.encode(messages)
        self._room(len(prompt) + len(answer) - 1)
        self._check_variants(variants)
        if strengths and len(strengths) != len(variants):
            raise EngineError(f"There are {len(variants)} readers but {len(strengths)} strengths.")
        return drift_of(self._model, self._prompts, prompt, answer, variants, strengths, stopped)
