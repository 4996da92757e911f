# SPDX-License-Identifier: Apache-2.0
"""The routing of one token at a time on a CPU, as Python numbers; what `AdapterRouter` does for many.

In a forward, the first step of every Linear takes several times as long as the same step right after. Routers that
read the same input, such as those of the query, key and value projections, therefore share what they have in common,
and place its context one after the other.
"""

from __future__ import annotations

import math
from itertools import count
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..method import ClusterTables, Router, SlimConfig
from ..method.contexts import Sequences
from ..method.routing import VARIANCE_EPS
from ..peft_tools import TokenRouting
from .single_token_contexts import CarriedExcess, TokenContexts, extended_sums, token_contexts


class TokenGate(NamedTuple):
    """The gate of one row at one router.

    Attributes:
        strength: the factor in front of the excess.
        reference: by bucket the distance up to which a context counts as like the training data; None with the
            paper's yielding.
    """

    strength: float
    reference: list[float] | None


class ContextPlace(NamedTuple):
    """Where a context is among the clusters of a router: the nearest cluster, and the distance d."""

    cluster: int
    distance: float


class InputContexts:
    """The contexts of one input, for the routers of one adapter that read it one after the other.

    Attributes:
        contexts: of the forward.
        carried: with `carry_up`, the excesses so far; else None.
        sums: (B, C) float32 sums of the contexts.
        kept: (B, k, C) what a cache remembers of them.
        places: by row and router.
        routers: that have read the input, in this order.
    """

    def __init__(self, contexts: TokenContexts, carried: CarriedExcess | None, steps: np.ndarray, trail: bool) -> None:
        self.contexts, self.carried, self.sums = contexts, carried, steps[:, 1]
        kept = torch.from_numpy(steps)
        self.kept = kept if trail else kept[:, -1:]
        self.places: dict[int, dict[TokenRouter, ContextPlace]] = {}
        self.routers: list[TokenRouter] = []

    def mean(self, row: int) -> np.ndarray:
        """(C,) the context of a row."""
        mean: np.ndarray = self.sums[row] / max(self.contexts.counts[row], 1)
        return mean


_numbers = count()


class TokenInput:
    """What all Linears share that read one input one after the other.

    Args:
        x: (B, C) or (B, 1, C) the input.
        sequences: what the forward reads; None if no adapter uses contexts.

    Attributes:
        tokens: (B, C) float32; those of a float32 input share its memory.
        of_adapter: the contexts, by adapter name.
        routings: by router and row.
        number: of this input; a router that kept the input itself would release it a forward later, which takes time.
    """

    def __init__(self, x: Tensor, sequences: Sequences | None) -> None:
        self._x, self._version, self.sequences = x, _version(x), sequences
        x = x if x.dtype == torch.float32 else x.float()
        self.tokens = (x.detach() if x.requires_grad else x).numpy().reshape(len(x), -1)
        self.of_adapter: dict[str, InputContexts] = {}
        self.routings: dict[TokenRouter, dict[int, TokenRouting]] = {}
        self.number = next(_numbers)

    def is_of(self, x: Tensor, sequences: Sequences | None) -> bool:
        """Whether this is what `x` contains; another version means that it has been written to since."""
        return self._x is x and self.sequences is sequences and self._version == _version(x)

    def end(self) -> None:
        """Another input follows: the first router that has read this one learns which others do."""
        for contexts in self.of_adapter.values():
            first, *others = contexts.routers
            if first.others is None:
                first.others = others


def _version(x: Tensor) -> int:
    return 0 if x.is_inference() else x._version


class TokenRouter:
    """One router, for one token at a time. It keeps its results while the Linears of a block share them.

    Args:
        config: of the adapter.
        tables: its clusters, float32.
        router: its weights.
        readers: how many Linears use the routing of each input.
        key: under which a cache keeps its sums.
        name: of the adapter.

    Attributes:
        others: routers that are expected to read the same input after this one; None if it is not known yet.
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
        self.others: list[TokenRouter] | None = None
        self._number, self._reads = -1, 0
        # With `carry_up`: how many routers ran before this one.
        self._earlier_routers = 0

    def begin(self, token_input: TokenInput) -> None:
        """Start with the input of all rows to one of the Linears."""
        if self._number != token_input.number or self._reads == self._readers:
            self._number, self._reads = token_input.number, 0
            token_input.routings[self] = {}
            if self._contextual:
                assert token_input.sequences is not None  # `single_token` has checked it
                self._extend_contexts(token_input, token_input.sequences)
        self._reads += 1

    def _extend_contexts(self, token_input: TokenInput, sequences: Sequences) -> None:
        """Add the tokens to the sums of their contexts, and keep these in the cache."""
        key, shared = sequences.key_of_call(self._key), token_input.of_adapter.get(self._name)
        if shared is None:
            contexts = token_contexts(sequences, self._opening)
            carried = contexts.carried_by(self._name, sequences) if self._carries_up else None
            steps = extended_sums(key, token_input.tokens, contexts, sequences)
            shared = token_input.of_adapter[self._name] = InputContexts(contexts, carried, steps, sequences.trail)
        elif sequences.state is not None:
            sequences.state.kept_sums(key)  # raises if this router has not read what is in the cache
        shared.routers.append(self)
        if sequences.ended is not None:
            sequences.ended.sums[key] = shared.kept
        if shared.carried is not None:
            self._earlier_routers = shared.carried.excess.routers
            shared.carried.excess.routers += 1

    def of_row(self, row: int, token_input: TokenInput, gate: TokenGate) -> TokenRouting:
        """The routing of a row's token; `begin` has been given this input."""
        routings = token_input.routings[self]
        routing = routings.get(row)
        if routing is None:
            routing = routings[row] = self._route(row, token_input, gate)
        return routing

    def _route(self, row: int, token_input: TokenInput, row_gate: TokenGate) -> TokenRouting:
        x, bucket, closed = token_input.tokens[row], 0, False
        shared = token_input.of_adapter[self._name] if self._contextual else None
        if shared is None:
            place, x = self._place(x)
        else:
            place = self._place_of_context(row, shared)
            bucket = shared.contexts.buckets[row]
            closed = max(shared.contexts.counts[row], 1) <= self._config.context_warmup
        level = 0.0 if row_gate.reference is None else row_gate.reference[bucket]
        excess = place.distance if row_gate.reference is None else max(place.distance - level, 0.0)
        gate, push = self._gate(row, excess, row_gate.strength, closed, None if shared is None else shared.carried)
        if gate == 0.0:
            return TokenRouting([*self._past_lora], place.distance, place.cluster, [], gate, level)
        routing = TokenRouting([], place.distance, place.cluster, [], gate, level)
        return self._soft_top_k(self._logits(x), push, routing)

    def _place_of_context(self, row: int, shared: InputContexts) -> ContextPlace:
        places = shared.places.setdefault(row, {})
        place = places.get(self)
        if place is None:
            mean = shared.mean(row)
            place = places[self] = self._place(mean)[0]
            for other in self.others or ():
                places[other] = other._place(mean)[0]
        return place

    def _place(self, x: np.ndarray) -> tuple[ContextPlace, np.ndarray]:
        """Where (C,) x is among the clusters, and (C,) z."""
        nearness = self._direction.dot(x)
        nearness += self._near
        cluster = int(nearness.argmin())
        z = x - self._center[cluster]
        z *= self._scale[cluster]
        if self._config.distance == "max":
            return ContextPlace(cluster, float(max(-z.min(), z.max())) - 1), z
        return ContextPlace(cluster, math.sqrt(z.dot(z) / len(z)) - 1), z

    def _logits(self, z: np.ndarray) -> list[float]:
        if self._mean is not None and self._spread is not None:
            z = (z - self._mean) * self._spread
        if self._down is not None and self._up is not None:
            hidden = self._down.dot(z)
            z = z + self._up.dot(hidden / (1 + np.exp(-hidden)))
        logits = self._weight.dot(z)
        logits += self._bias
        scores: list[float] = logits.tolist()
        return scores

    def _gate(
        self, row: int, excess: float, strength: float, closed: bool, carried: CarriedExcess | None
    ) -> tuple[float, float]:
        """The gate, and what is subtracted from the LoRA experts' logits if the config asks for that instead.

        The same as in `method/gate.py`, whose tensor operations would take longer than the rest of the routing.
        `tests/inference/test_single_token_gate.py` compares the two.
        """
        if carried is not None:
            carried.by_row[row] += excess
            excess = float(carried.by_row[row]) / (self._earlier_routers + 1)
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
