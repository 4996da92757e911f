# SPDX-License-Identifier: Apache-2.0
"""Rows of one token each on a CPU, which is what generation reads: less work for the same numbers.

There, reading a number from a tensor costs no wait. So the few numbers of a token's routing are Python's, and what its
weights leave out is not computed: of E experts at most K are read from memory, and none for a token that goes past
them all. The vectors are so short that beginning an operation costs more than the operation, most of all in a small
model, whose weights push the code of the one before out of the cache: NumPy begins with the least.
What this replaces is in `linear.py` and `routing.py`; the results differ by rounding alone.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .config import SlimConfig
from .routing import ClusterTables, Router
from .trace import RoutingTrace


# With more experts for each token, or more rows, the stacked products of many tokens are faster.
MOST_EXPERTS = 4
MOST_ROWS = 8
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class TokenRouting(NamedTuple):
    """How one token was routed.

    Attributes:
        weights: of the E + I experts, zero for those that were not kept.
        distance: d.
        cluster: index of the nearest cluster.
        sent: the LoRA experts that it was sent to, each with its weight.
    """

    weights: list[float]
    distance: float
    cluster: int
    sent: list[tuple[int, float]]


# What a plain LoRA does with every token.
UNROUTED = TokenRouting([1.0], 0.0, -1, [(0, 1.0)])


class TokenRouter:
    """One router for one token at a time, and its answers while the Linears of a block share them.

    Args:
        config: of the adapter.
        tables: its clusters, float32.
        router: its weights.
        reference: () the calibrated distance, or None.
        readers: how many Linears read each input's routing.
    """

    def __init__(
        self, config: SlimConfig, tables: ClusterTables, router: Router, reference: Tensor | None, readers: int
    ) -> None:
        self._num_experts, self._top_k = config.num_experts, config.top_k
        self._strength, self._statistic = config.yield_strength, config.distance
        self._center, self._scale, self._direction, self._near = (table.detach().numpy() for table in tables)
        self._weight, self._bias, self._down, self._up = (
            None if weight is None else weight.detach().float().numpy() for weight in router
        )
        self._reference = None if reference is None else reference.item()
        self._readers = readers
        self._input: Tensor | None = None
        self._version = self._reads = 0
        self._found: dict[int, TokenRouting] = {}

    def begin(self, x: Tensor) -> None:
        """One of the readers comes with the input `x` of all rows."""
        version = 0 if x.is_inference() else x._version
        if self._input is not x or self._version != version or self._reads == self._readers:
            self._input, self._version, self._reads, self._found = x, version, 0, {}
        self._reads += 1

    def of_row(self, row: int, x: np.ndarray) -> TokenRouting:
        """Routing of the token `x`, (C,) float32, which is row `row` of the input that was begun with."""
        found = self._found.get(row)
        if found is None:
            found = self._found[row] = self._route(x)
        return found

    def _route(self, x: np.ndarray) -> TokenRouting:
        with np.errstate(all="ignore"):  # numbers that are none go through, as everywhere
            cluster = int((self._direction.dot(x) + self._near).argmin())
            z = x - self._center[cluster]
            z *= self._scale[cluster]
            if self._statistic == "max":
                distance = float(max(-z.min(), z.max())) - 1
            else:
                distance = math.sqrt(z.dot(z) / len(z)) - 1
            if self._down is not None:
                hidden = self._down.dot(z)
                z += self._up.dot(hidden / (1 + np.exp(-hidden)))
            scores = (self._weight.dot(z) + self._bias).tolist()
        return self._soft_top_k(scores, distance, cluster)

    def _soft_top_k(self, scores: list[float], distance: float, cluster: int) -> TokenRouting:
        lora = self._num_experts
        beyond = distance if self._reference is None else max(distance - self._reference, 0.0)
        if beyond:
            push = self._strength * beyond
            scores[:lora] = [score - push for score in scores[:lora]]
        weights, kept, total, best = [0.0] * len(scores), [], 0.0, max(scores)
        if math.isnan(sum(scores)) or best == -math.inf:
            # Numbers that are none have no order, so nothing can be chosen.
            return TokenRouting([math.nan] * len(scores), distance, cluster, [(0, math.nan)])
        for _ in range(self._top_k):
            score = max(scores)
            if kept and score == -math.inf:
                break
            expert = scores.index(score)
            scores[expert] = -math.inf
            weights[expert] = power = math.exp(score - best)
            total += power
            kept.append(expert)
        sent = []
        for expert in kept:
            weights[expert] = weight = weights[expert] / total
            if expert < lora and weight:
                sent.append((expert, weight))
        return TokenRouting(weights, distance, cluster, sent)


class _Row(NamedTuple):
    """One row with an adapter: its place in the batch, who routes it, and the factors of its experts.

    Factors are pairs of (r, C_in) and (r, C_out), each in one piece of memory.
    """

    row: int
    name: str
    router: TokenRouter | None
    factors: list[tuple[np.ndarray, np.ndarray]]
    scale: float


class TokenRows:
    """What the rows of one batch add to the result of one Linear."""

    def __init__(self, module: str, in_features: int, out_features: int) -> None:
        self._module, self._in, self._out = module, in_features, out_features
        self._rows: list[_Row] = []
        self._routers: list[TokenRouter] = []

    def put(
        self, row: int, name: str, a: Tensor, b: Tensor, num_experts: int, scale: float, router: TokenRouter | None
    ) -> None:
        """Row `row` belongs to adapter `name`, with stacked factors (E r, C_in) and (C_out, E r), both float32."""
        first, second = (t.detach().numpy().reshape(num_experts, -1, t.shape[1]) for t in (a, b.t()))
        self._rows.append(_Row(row, name, router, list(zip(first, second, strict=True)), scale))
        if router is not None and router not in self._routers:
            self._routers.append(router)

    def add(self, x: Tensor, result: Tensor, trace: RoutingTrace | None) -> Tensor:
        """Add the experts of every row to `result`, (B, C_out) or (B, 1, C_out); in place, if it is float32.

        Args:
            x: (B, C_in) or (B, 1, C_in) tokens; half precision is computed in float32 and rounded once.
            result: of the base layer, in the dtype of `x`.
            trace: where the routing is recorded.
        """
        if not self._rows:
            return result
        for router in self._routers:
            router.begin(x)
        total = result if result.dtype == torch.float32 else result.float()
        tokens, sums = _rows(x, self._in), _rows(total, self._out)
        for row, name, router, factors, scale in self._rows:
            token, added = tokens[row], sums[row]
            routing = UNROUTED if router is None else router.of_row(row, token)
            for expert, weight in routing.sent:
                first, second = factors[expert]
                hidden = first.dot(token)
                hidden *= weight * scale
                added += hidden.dot(second)
            if trace is not None:
                trace.add_token(self._module, name, row, routing.weights, routing.distance, routing.cluster)
        return total if total is result else total.to(result.dtype)


def _rows(x: Tensor, features: int) -> np.ndarray:
    """(B, features) float32 rows; of a float32 tensor in its own memory."""
    if x.dtype != torch.float32:
        x = x.float()
    return (x.detach() if x.requires_grad else x).numpy().reshape(-1, features)
