# SPDX-License-Identifier: Apache-2.0
"""The routing of one token at a time on a CPU, as Python numbers; what `AdapterRouter` does for many."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..method import ClusterTables, Router, SlimConfig
from ..method.contexts import Sequences
from ..method.routing import VARIANCE_EPS
from ..peft_tools import TokenRouting
from .single_token_contexts import LatestSums, TokenContexts, token_contexts


class TokenGate(NamedTuple):
    """The gate of one row at one router.

    Attributes:
        strength: the factor in front of the excess.
        reference: by bucket the distance up to which a context counts as like the training data; None with the
            paper's yielding.
    """

    strength: float
    reference: list[float] | None


class TokenRouter:
    """One router, for one token at a time. It keeps its results while the Linears of a block share them.

    Args:
        config: of the adapter.
        tables: its clusters, float32.
        router: its weights.
        readers: how many Linears use the routing of each input.
        key: under which a cache keeps its sums.
        name: of the adapter.
    """

    def __init__(
        self,
        config: SlimConfig,
        tables: ClusterTables,
        router: Router,
        readers: int,
        key: str,
        name: str,
    ) -> None:
        self._config, self._readers, self._key, self._name = config, readers, key, name
        self._contextual, self._carries_up = config.distance_scope == "context", config.carries_up
        self._opening = tuple(config.turn_opening or ())
        self._center, self._scale, self._direction, self._near = (table.detach().numpy() for table in tables)
        weight, bias, *hidden = router[:4]
        self._down, self._up = (None if factor is None else factor.detach().float().numpy() for factor in hidden)
        self._mean: np.ndarray | None = None
        self._spread: np.ndarray | None = None
        if router.mean is not None and router.var is not None and router.down is not None:
            self._mean = router.mean[0].detach().numpy()
            self._spread = (router.var[0] + VARIANCE_EPS).rsqrt().detach().numpy()
        elif router.mean is not None:
            weight, bias = router.folded()
        self._weight, self._bias = (tensor.detach().float().numpy() for tensor in (weight, bias))
        identity = config.num_identity
        self._past_lora = [0.0] * config.num_experts + [1 / max(identity, 1)] * identity
        self._input: Tensor | None = None
        self._version = self._reads = 0
        self._routings: dict[int, TokenRouting] = {}
        # For each row of the current input: the sums of its context, their count and its bucket.
        self._sums = np.empty((0, 0), np.float32)
        self._counts: list[int] = []
        self._buckets: list[int] = []
        # With `carry_up`: the sum of the excesses of the routers before this one, by row, and how many they are.
        self._excess_sum: np.ndarray | None = None
        self._earlier_routers = 0

    def begin(self, x: Tensor, tokens: np.ndarray, sequences: Sequences | None) -> None:
        """Start with `x`, the input of all rows to one of the Linears; `tokens` is the same as (B, C) float32."""
        version = 0 if x.is_inference() else x._version
        if self._input is not x or self._version != version or self._reads == self._readers:
            self._input, self._version, self._reads, self._routings = x, version, 0, {}
            if self._contextual:
                assert sequences is not None  # `_is_one_token_each` has checked it
                self._extend_contexts(x, tokens, sequences)
        self._reads += 1

    def _extend_contexts(self, x: Tensor, tokens: np.ndarray, sequences: Sequences) -> None:
        """Add the tokens to the sums of their contexts, and keep these in the cache."""
        contexts = token_contexts(sequences, self._opening)
        self._counts, self._buckets = contexts.counts, contexts.buckets
        if self._carries_up:
            excess = sequences.excess_sum(self._name)
            self._excess_sum, self._earlier_routers = excess.total.numpy()[:, 0], excess.routers
            excess.routers += 1
        key = sequences.key_of_call(self._key)
        latest = contexts.latest.get(self._name)
        if latest is None or latest.x is not x or latest.version != self._version:
            latest = LatestSums(x, self._version, self._add_up(key, tokens, contexts, sequences))
            contexts.latest[self._name] = latest
        elif sequences.state is not None:
            sequences.state.kept_sums(key)  # raises if this router has not read what is in the cache
        self._sums = latest.steps[:, 1]
        if sequences.ended is not None:
            steps = torch.from_numpy(latest.steps)
            sequences.ended.sums[key] = steps if sequences.trail else steps[:, -1:]

    def _add_up(self, key: str, tokens: np.ndarray, contexts: TokenContexts, sequences: Sequences) -> np.ndarray:
        """(B, 2, C) sums before and after the tokens."""
        steps = np.empty((tokens.shape[0], 2, tokens.shape[1]), np.float32)
        steps[:, 0] = before = 0 if sequences.state is None else sequences.state.kept_sums(key).numpy()[:, -1]
        carried = before if contexts.continues is None else np.where(contexts.continues, before, 0)
        np.add(carried, tokens if contexts.counted is None else np.where(contexts.counted, tokens, 0), out=steps[:, 1])
        return steps

    def of_row(self, row: int, x: np.ndarray, gate: TokenGate) -> TokenRouting:
        """The routing of the token `x`, (C,) float32: row `row` of the input that `begin` was given."""
        routing = self._routings.get(row)
        if routing is None:
            with np.errstate(all="ignore"):  # NaNs propagate, as everywhere
                routing = self._routings[row] = self._route(row, x, gate)
        return routing

    def _route(self, row: int, x: np.ndarray, row_gate: TokenGate) -> TokenRouting:
        placed, bucket, closed = x, 0, False
        if self._contextual:
            count = max(self._counts[row], 1)
            placed, bucket = self._sums[row] / count, self._buckets[row]
            closed = count <= self._config.context_warmup
        nearness = self._direction.dot(placed)
        nearness += self._near
        cluster = int(nearness.argmin())
        z = placed - self._center[cluster]
        z *= self._scale[cluster]
        if self._config.distance == "max":
            distance = float(max(-z.min(), z.max())) - 1
        else:
            distance = math.sqrt(z.dot(z) / len(z)) - 1
        level = 0.0 if row_gate.reference is None else row_gate.reference[bucket]
        excess = distance if row_gate.reference is None else max(distance - level, 0.0)
        gate, push = self._gate(row, excess, row_gate.strength, closed)
        if gate == 0.0:
            return TokenRouting([*self._past_lora], distance, cluster, [], gate, level)
        routing = TokenRouting([], distance, cluster, [], gate, level)
        if self._contextual:
            z = x if self._mean is None or self._spread is None else (x - self._mean) * self._spread
        if self._down is not None and self._up is not None:
            hidden = self._down.dot(z)
            z = z + self._up.dot(hidden / (1 + np.exp(-hidden)))
        return self._soft_top_k((self._weight.dot(z) + self._bias).tolist(), push, routing)

    def _gate(self, row: int, excess: float, strength: float, closed: bool) -> tuple[float, float]:
        """The gate, and what is subtracted from the LoRA experts' logits if the config asks for that instead.

        The same as in `method/gate.py`, whose tensor operations would take longer than the rest of the routing.
        `tests/inference/test_single_token_gate.py` compares the two.
        """
        if self._excess_sum is not None:
            self._excess_sum[row] += excess
            excess = float(self._excess_sum[row]) / (self._earlier_routers + 1)
        if self._config.yield_mode != "gate":
            return 1.0, strength * excess
        return 0.0 if closed else min(max(1 - strength * excess, 0.0), 1.0), 0.0

    def _soft_top_k(self, scores: list[float], push: float, routing: TokenRouting) -> TokenRouting:
        lora, gate = self._config.num_experts, routing.gate
        if push:
            scores[:lora] = [score - push for score in scores[:lora]]
        weights, total, best = [0.0] * len(scores), 0.0, max(scores)
        experts: list[int] = []
        if math.isnan(sum(scores) + gate) or best == -math.inf:
            # NaNs have no order, so nothing can be chosen.
            return routing._replace(weights=[math.nan] * len(scores), sent=[(0, math.nan)])
        for _ in range(self._config.top_k):
            score = max(scores)
            if experts and score == -math.inf:
                break
            expert = scores.index(score)
            scores[expert] = -math.inf
            weights[expert] = power = math.exp(score - best)
            total += power
            experts.append(expert)
        sent = []
        for expert in experts:
            weights[expert] = weight = weights[expert] / total * gate
            if expert < lora and weight:
                sent.append((expert, weight))
        if gate < 1.0:
            bypass = (1 - gate) / max(self._config.num_identity, 1)
            weights[lora:] = [weight + bypass for weight in weights[lora:]]
        return routing._replace(weights=weights, sent=sent)
