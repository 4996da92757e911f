# SPDX-License-Identifier: Apache-2.0
"""The decoding loop: several answers as the rows of one batch, their prompts first, then one forward a token."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from ..base.errors import is_out_of_memory, out_of_memory_sentence
from ..method import context_of, drop_padding
from ..peft_tools import RowRouting, adapter_rows, trace_routing, traceable_adapters
from .cache import GrowingLayer, growing_cache, longest_piece
from .detokenise import AnswerText
from .forward import forward_arguments
from .sampling import Sampler
from .types import FinishReason, RowStep, Sampling, State


NOT_A_NUMBER = (
    "The model's outputs are no longer finite, so no next token can be chosen: its adapter may be broken or made for "
    "another base."
)


@dataclass
class Draft:
    """One answer while it is being written.

    Attributes:
        index: its place among the rows that were asked for.
        peft_name: of its variant, in `adapter_names`.
        prompt: token ids of the conversation.
        limit: most tokens that it may have.
        text: its text.
        routing: whether its routing is recorded.
        strength: of its gate; None for its adapter's own.
        ids: its tokens.
        records: its routing so far, in pieces that follow each other.
    """

    index: int
    peft_name: str
    prompt: list[int]
    limit: int
    text: AnswerText
    routing: bool = False
    strength: float | None = None
    ids: list[int] = field(default_factory=list)
    records: list[RowRouting] = field(default_factory=list)
    state: State = "waiting"
    started: float = 0.0
    first: float | None = None
    latest: float = 0.0
    finish_reason: FinishReason | None = None
    error: str | None = None

    def begin(self) -> None:
        self.state = "reading"
        self.started = self.latest = time.perf_counter()

    def end(self, reason: FinishReason, error: str | None = None) -> None:
        self.text.finish()
        self.state, self.finish_reason, self.error = "done", reason, error
        if self.started:
            self.latest = time.perf_counter()

    def shown(self, variant: str) -> RowStep:
        """The state of the answer, as reported for a variant."""
        now = time.perf_counter() if self.state in ("reading", "writing") else self.latest
        writing = 0.0 if self.first is None else self.latest - self.first
        return RowStep(
            variant=variant,
            state=self.state,
            text=self.text.text,
            tokens=len(self.ids),
            prompt_tokens=len(self.prompt),
            first_token_seconds=None if self.first is None else self.first - self.started,
            tokens_per_second=(len(self.ids) - 1) / writing if len(self.ids) > 1 and writing > 0 else None,
            seconds=now - self.started,
            finish_reason=self.finish_reason,
            error=self.error,
            token_ids=tuple(self.ids),
        )

    def take(self, token: int, end_tokens: frozenset[int]) -> None:
        """The model has chosen a token."""
        self.latest = time.perf_counter()
        if self.first is None:
            self.first, self.state = self.latest, "writing"
        if token in end_tokens:
            self.end("end")
            return
        self.ids.append(token)
        if self.text.push(token):
            self.end("stop_string")
        elif len(self.ids) >= self.limit:
            self.end("length")


def decode(
    model: PreTrainedModel,
    answers: Sequence[Draft],
    sampler: Sampler,
    end_tokens: frozenset[int],
    stopped: Callable[[int], bool],
    routing_every: float,
) -> Generator[bool, None, None]:
    """Write the answers. They change in place; look at them at each yield.

    The caller must have the model for itself until this generator is closed or exhausted.

    Args:
        model: the base model with its adapters, in evaluation mode.
        answers: the rows of the batch; at least one, with a prompt each.
        sampler: chooses the tokens.
        end_tokens: tokens that end an answer.
        stopped: whether the row of an index was stopped by a person.
        routing_every: seconds between readings of the routing record.

    Yields:
        Whether the routing records are new: at the start, after each piece of long prompts, and after each token.
    """
    for answer in answers:
        answer.begin()
    batch = None
    try:
        batch = _Batch(model, answers, sampler)
        yield False
        while batch.read_piece():
            for answer in batch.answers:
                if stopped(answer.index):
                    answer.end("stopped")
            if any(answer.state == "done" for answer in batch.answers):
                batch.drop_done()
            yield False
        read_at = time.perf_counter()
        while batch.answers:
            for answer, token, finite in zip(batch.answers, *batch.forward(), strict=True):
                if not finite:
                    answer.end("error", NOT_A_NUMBER)
                elif stopped(answer.index):
                    answer.end("stopped")
                else:
                    answer.take(token, end_tokens)
            leaving = any(answer.state == "done" for answer in batch.answers)
            due = batch.traced and (leaving or time.perf_counter() - read_at >= routing_every)
            if due:
                batch.read_routing()
                read_at = time.perf_counter()
            if leaving:
                batch.drop_done()
            yield due
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        sentence = out_of_memory_sentence(model.device, len(answers))
    else:
        return
    finally:
        if batch is not None:
            batch.close()
    # Outside the handler, whose traceback keeps the tensors alive.
    batch = None
    if model.device.type == "cuda":
        torch.cuda.empty_cache()
    for answer in answers:
        if answer.state != "done":
            answer.end("error", sentence)
    yield True


def read_prompt(model: PreTrainedModel, answer: Draft) -> None:
    """Read a prompt only for its routing; nothing is written."""
    batch = _Batch(model, [answer], Sampler(Sampling()))
    try:
        while batch.read_piece():
            pass
        batch.forward()
        if batch.traced:
            batch.read_routing()
    finally:
        batch.close()


class _Batch:
    """The rows that are still being written, and all tensors that belong to them.

    Attributes:
        answers: the B rows.
        traced: whether any of them has its routing recorded.
    """

    @torch.inference_mode()
    def __init__(self, model: PreTrainedModel, answers: Sequence[Draft], sampler: Sampler) -> None:
        self._model, self._sampler = model, sampler
        self.answers = list(answers)
        lengths = [len(answer.prompt) for answer in answers]
        self._width = max(lengths)
        # How many of these columns are not in the cache yet: those of `_next`.
        self._unread = self._width
        self._padding = [self._width - length for length in lengths]
        device = model.device
        # Any token can serve as padding, since it is masked.
        self._next = torch.tensor(
            [[0] * p + a.prompt for p, a in zip(self._padding, answers, strict=True)], device=device
        )
        starts = torch.tensor(self._padding, device=device).unsqueeze(1)
        self._positions = (torch.arange(self._width, device=device) - starts).clamp_min_(0)
        self._mask: Tensor | None = None
        if any(self._padding):
            # As long as the longest possible answer, so that each step takes a slice.
            columns = torch.arange(self._width + max(answer.limit for answer in answers), device=device)
            self._mask = (columns >= starts).long()
        self._seen: Tensor | None = None
        if sampler.counts_repetitions:
            # An id beyond every vocabulary, which the penalty ignores.
            nothing = torch.iinfo(torch.int64).max
            self._seen = self._next.masked_fill(torch.arange(self._width, device=device) < starts, nothing)
        self._cache = growing_cache(model.config)
        self._piece = longest_piece(model.config)
        self._adapted = context_of(model) is not None
        self._traceable = traceable_adapters(model)
        self._scopes = ExitStack()
        self._enter()

    @property
    def traced(self) -> bool:
        return self._trace is not None

    def _enter(self) -> None:
        """Set the adapter of each row in the model, and record the routing of the rows that ask for it."""
        self._trace = None
        if not self._adapted:
            return
        names = [answer.peft_name for answer in self.answers]
        strengths = [answer.strength for answer in self.answers]
        own = all(strength is None for strength in strengths)
        self._scopes.enter_context(adapter_rows(self._model, names, None if own else strengths))
        wanted = [i for i, answer in enumerate(self.answers) if answer.routing and answer.peft_name in self._traceable]
        if wanted:
            self._trace = self._scopes.enter_context(trace_routing(self._model, rows=wanted))

    @torch.inference_mode()
    def read_piece(self) -> bool:
        """Read the next piece of the prompts, if `forward` would otherwise read more than one piece at once.

        Returns:
            Whether there was such a piece.
        """
        if not self.answers or self._unread <= self._piece:
            return False
        self._read(self._piece)
        self._next, self._positions = self._next[:, self._piece :], self._positions[:, self._piece :]
        return True

    @torch.inference_mode()
    def forward(self) -> tuple[list[int], list[bool]]:
        """Read the next tokens of all rows and choose those that follow.

        Returns:
            For each row the token, and whether it was chosen from finite numbers.
        """
        tokens, ids, finite = self._sampler.choose(self._read(self._unread), self._seen)
        self._next = tokens.unsqueeze(1)
        self._positions = self._positions[:, -1:] + 1
        self._width += 1
        self._unread = 1
        if self._seen is not None:
            self._seen = torch.cat([self._seen, self._next], dim=1)
        return ids, finite

    def _read(self, count: int) -> Tensor:
        """Read `count` of the unread columns; returns (B, V) logits of the last one."""
        ids, positions = self._next[:, :count], self._positions[:, :count]
        self._unread -= count
        mask = None if self._mask is None else self._mask[:, : self._width - self._unread]
        output = self._model(**forward_arguments(self._model, ids, positions, mask, self._cache, keep=1))
        return output.logits[:, -1]

    def read_routing(self) -> None:
        """Pass what was recorded since the last time to the answers."""
        assert self._trace is not None  # `traced`
        for row in self._trace.rows:
            self.answers[row].records.append(self._trace.row(row))
        self._trace.clear()

    @torch.inference_mode()
    def drop_done(self) -> None:
        """Take the rows that have ended out of the batch, and padding that is no longer needed."""
        kept = [i for i, answer in enumerate(self.answers) if answer.state != "done"]
        self._scopes.close()
        self.answers = [self.answers[i] for i in kept]
        self._trace = None
        if not kept:
            self._cache = DynamicCache()
            return
        # On the CPU: the layers of a model that is spread over GPUs have their caches on each.
        index = torch.tensor(kept)
        self._cache.batch_select_indices(index)
        self._next, self._positions = self._next[index], self._positions[index]
        self._padding = [self._padding[i] for i in kept]
        if self._mask is not None:
            self._mask = self._mask[index]
        if self._seen is not None:
            self._seen = self._seen[index]
        self._trim()
        self._enter()

    def _trim(self) -> None:
        """Drop the columns that are padding in every row that is left."""
        spare = min(self._padding)
        layers = [layer for layer in self._cache.layers if isinstance(layer, GrowingLayer)]
        # A sliding window counts its own columns; there the padding stays. So it does while prompts are read.
        if spare == 0 or self._unread > 1 or len(layers) < len(self._cache.layers):
            return
        for layer in layers:
            assert layer.keys is not None and layer.values is not None  # prompts were read
            layer.keys, layer.values = layer.keys[:, :, spare:], layer.values[:, :, spare:]
        drop_padding(self._cache, spare)
        self._width -= spare
        self._padding = [padding - spare for padding in self._padding]
        if self._mask is not None:
            self._mask = self._mask[:, spare:] if any(self._padding) else None
        if self._seen is not None:
            self._seen = self._seen[:, spare:]

    def close(self) -> None:
        """Free everything."""
        self._scopes.close()
        del self._trace, self._cache, self._mask, self._seen, self._next, self._positions
