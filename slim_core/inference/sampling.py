# SPDX-License-Identifier: Apache-2.0
"""From logits to the next tokens. All rows use the same random numbers, so that answers differ only by their
models.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ..base.errors import EngineError
from .types import Sampling


def check_sampling(sampling: Sampling) -> None:
    """Raises EngineError if a value is out of its range; the sentence names the value and the range."""
    # Written so that a NaN is out of every range.
    allowed = {
        "temperature": ("between 0 and 2", 0 <= sampling.temperature <= 2),
        "top_p": ("above 0 and at most 1", 0 < sampling.top_p <= 1),
        "top_k": ("a whole number, 0 or more", sampling.top_k >= 0 and sampling.top_k == int(sampling.top_k)),
        "min_p": ("between 0 and 1", 0 <= sampling.min_p <= 1),
        "repetition_penalty": ("above 0 and at most 10", 0 < sampling.repetition_penalty <= 10),
        "max_new_tokens": ("at least 1", sampling.max_new_tokens >= 1),
        "seed": ("between 0 and 2^63 - 1", 0 <= sampling.seed < 2**63),
    }
    for name, (allowed_range, valid) in allowed.items():
        if not valid:
            raise EngineError(f"{name} must be {allowed_range}, not {getattr(sampling, name)!r}.")


class Sampler:
    """Chooses the next token of every row.

    The n-th token of an answer is drawn with the n-th random vector over the vocabulary, in every row and batch:
    argmax of score + Gumbel noise is a draw from softmax(score).

    Args:
        sampling: the settings.

    Attributes:
        counts_repetitions: whether `choose` needs the tokens that were there before.
    """

    def __init__(self, sampling: Sampling) -> None:
        self.counts_repetitions = sampling.repetition_penalty != 1
        # Not a LogitsProcessorList, which inspects each one's signature at every token.
        processors: list[LogitsProcessor] = []
        if self.counts_repetitions:
            processors.append(RepetitionPenaltyLogitsProcessor(float(sampling.repetition_penalty)))
        # In greedy decoding the most likely token wins, whatever happens to the others.
        self._dice = torch.Generator().manual_seed(int(sampling.seed)) if sampling.temperature > 0 else None
        if self._dice is not None:
            if sampling.temperature != 1:
                processors.append(TemperatureLogitsWarper(float(sampling.temperature)))
            if sampling.top_k > 0:
                processors.append(TopKLogitsWarper(int(sampling.top_k)))
            if sampling.top_p < 1:
                processors.append(TopPLogitsWarper(float(sampling.top_p)))
            if sampling.min_p > 0:
                processors.append(MinPLogitsWarper(float(sampling.min_p)))
        self._processors = processors

    @property
    def plain(self) -> bool:
        """Whether it takes the most likely token, whatever came before."""
        return self._dice is None and not self._processors

    def choose(self, logits: Tensor, seen: Tensor | None = None) -> tuple[Tensor, list[int], list[bool]]:
        """One step for all rows.

        Args:
            logits: (B, V), of any floating dtype.
            seen: (B, S) int64 tokens of prompt and answer, where they count; V stands for no token.

        Returns:
            (B,) int64 tokens on the device of the logits; the same as a list; and whether each row's logits are
            numbers. Where they are not, the token means nothing.
        """
        scores = logits.float()
        for processor in self._processors:
            scores = processor(seen, scores)
        if self._dice is not None:
            # Drawn on the CPU, so that the same seed gives the same answer on every device. Not 0, whose logarithm
            # would beat even an excluded token.
            waits = torch.empty(scores.shape[-1]).exponential_(generator=self._dice).clamp_min_(1e-30)
            scores = scores - waits.log_().to(scores.device)
        return most_likely(scores)


def most_likely(scores: Tensor) -> tuple[Tensor, list[int], list[bool]]:
    """The best token of each row of (B, V) scores, as `Sampler.choose` returns it."""
    best, tokens = scores.max(-1)
    if scores.is_cpu:
        values, ids = best.tolist(), tokens.tolist()
    else:
        # One transfer for both; a token id is exact in float64.
        values, ids = torch.stack([best.double(), tokens.double()]).tolist()
    # A maximum over a NaN is NaN.
    return tokens, list(map(int, ids)), list(map(math.isfinite, values))
