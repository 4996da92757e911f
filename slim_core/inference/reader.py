# SPDX-License-Identifier: Apache-2.0
"""The part of the engine that only reads: counts tokens, scores given words, and measures drift."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from transformers import PreTrainedModel

from ..base.errors import EngineError
from ..base.messages import Message
from ..base.prompts import Prompts
from ..method import GateSetting
from .describe import describe
from .draft import Work
from .drift import drift_of
from .questions import Questions, check_gates
from .scheduler import Scheduler
from .scoring import likelihoods
from .types import Drift, Likelihood, Passage, Reading, Sampling, Variant
from .variants import BASE, check_variants


# How often waiting callers are told their place, in seconds.
WAITING_SECONDS = 0.5


class Reader:
    """A loaded model that reads texts: counts tokens, scores words, measures drift. `Engine` adds answering.

    Args:
        model: the base model without adapters, in evaluation mode.
        prompts: renders and tokenises conversations.
        name: what people call it; its folder or Hub id.

    Attributes:
        info: what is loaded.
        variants: the base first, then the adapters in the order in which they came.
    """

    def __init__(self, model: PreTrainedModel, prompts: Prompts, name: str) -> None:
        self._model = model.requires_grad_(False).eval()
        self._prompts = prompts
        self._scheduler = Scheduler(self._model)
        self._questions = Questions(model, prompts)
        self._closed: str | None = None
        self.info = describe(model, self._prompts, name)
        self.variants: tuple[Variant, ...] = (
            Variant(BASE, "base", "Base", self.info.parameters, self.info.bytes, self.info.dtype),
        )

    def _check_open(self) -> None:
        if self._closed is not None:
            raise EngineError(self._closed)

    @property
    def kept_at_most(self) -> int:
        """Memory that kept rows may take, in bytes."""
        return self._scheduler.kept.most_bytes

    def keep_at_most(self, most_bytes: int) -> None:
        """Keep the keys and values of rows that have ended: the next turn of a conversation is read from there.

        Args:
            most_bytes: memory that they may take; the least recently used go first. 0, the default, keeps none.
        """
        self._scheduler.kept.keep_at_most(most_bytes)

    def count_tokens(self, prompt: Sequence[Message] | str | Sequence[int]) -> int:
        """Number of tokens in a conversation, up to where the answer begins, in plain text, or of token ids.

        Raises:
            EngineError: if there is nothing in it, the chat template refuses it, or the model has no such token.
        """
        return len(self._questions.encode(prompt))

    def token_texts(self, ids: Sequence[int]) -> tuple[str, ...]:
        """The text of each token by itself; partial characters are shown as such, special tokens by name."""
        return self._prompts.token_texts(ids)

    def score(
        self,
        passages: Sequence[Passage],
        variants: Sequence[str],
        gates: Sequence[GateSetting] = (),
        *,
        routing: bool = False,
    ) -> list[Likelihood]:
        """How likely the variants find given words; waits in the queue, and reads between the forwards of others.

        Args:
            passages: the words, each with what comes before.
            variants: names of the variants that read them.
            gates: of each, as `Row.gate`; empty for as they were trained.
            routing: whether the shares that went past LoRA are wanted.

        Raises:
            EngineError: if a passage is empty or too long, a variant is unknown or does not store a quantile that is
                asked for, memory runs out, or the model fails.
        """
        place, work = self._scheduler.join(), Work([], Sampling())
        try:
            while not self._scheduler.enter(place, work, WAITING_SECONDS):
                self._check_open()
            self._check_open()
            check_variants(variants, self.variants)
            check_gates(variants, gates, self.variants)
            pairs = [self._questions.passage(passage, self.info.context_length) for passage in passages]
            return likelihoods(self._model, pairs, variants, gates, routing, self._scheduler.between)
        finally:
            self._scheduler.leave(place, work)

    def drift(
        self,
        messages: Sequence[Message],
        answer_ids: Sequence[int],
        variants: Sequence[str],
        gates: Sequence[GateSetting] = (),
    ) -> Drift:
        """Let variants read the base's own answer; waits in the queue.

        Args:
            messages: the conversation that the base answered.
            answer_ids: T tokens of its answer (`RowStep.token_ids`).
            variants: names of the variants that read it.
            gates: of each, as `Row.gate`; empty for as they were trained.

        Raises:
            EngineError: if the answer is empty or too long, a variant is unknown or does not store a quantile that is
                asked for, or memory runs out.
        """
        reading = Reading(tuple(variants), tuple(messages), gates=tuple(gates))
        place, work = self._scheduler.join(), Work([], Sampling())
        try:
            while not self._scheduler.enter(place, work, WAITING_SECONDS):
                self._check_open()
            self._check_open()
            drift = self._read(work, answer_ids, reading, lambda: False)
            assert drift is not None  # nobody stops it
            return drift
        finally:
            self._scheduler.leave(place, work)

    def _read(
        self, work: Work, answer_ids: Sequence[int], reading: Reading, stopped: Callable[[], bool]
    ) -> Drift | None:
        """The drift of an answer; None if it was stopped. The work was let in by the scheduler."""
        check_variants(reading.variants, self.variants)
        check_gates(reading.variants, reading.gates, self.variants)
        answer_reading = self._questions.reading(reading, answer_ids, self.info.context_length, stopped)
        tensors = self._scheduler.read(work, answer_reading)
        if tensors is None:
            return None
        return drift_of(reading.variants, self._prompts.token_texts(answer_reading.answer), tensors)
