# SPDX-License-Identifier: Apache-2.0
"""Rows of one token each on a CPU, which is what generation reads: less work for the same numbers.

There, reading a number from a tensor costs no wait. So the few numbers of a token's routing are Python's, and what its
weights leave out is not computed: of E experts at most K are read from memory, and none for a token that goes past
them all. What this replaces is in `linear.py` and `routing.py`; the results differ by rounding alone.
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
        self._tables = tables
        self._clusters: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._router = Router(*(None if weight is None else weight.detach().float() for weight in router))
        if router.down is None:
            self._weight, self._bias = self._router.weight.numpy(), self._router.bias.numpy()
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

    def of_row(self, row: int, x: Tensor) -> TokenRouting:
        """Routing of the token `x`, (C,) float32, which is row `row` of the input that was begun with."""
        found = self._found.get(row)
        if found is None:
            found = self._found[row] = self._route(x)
        return found

    def _route(self, x: Tensor) -> TokenRouting:
        tables, router = self._tables, self._router
        cluster = int(torch.addmv(tables.bias, tables.direction, x).numpy().argmin())
        rows = self._clusters.get(cluster)
        if rows is None:
            rows = self._clusters[cluster] = (tables.center[cluster].numpy(), tables.scale[cluster].numpy())
        # From here on the vectors are so short that NumPy, whose operations begin sooner, takes half the time.
        with np.errstate(all="ignore"):  # numbers that are none go through, as everywhere
            z = x.detach().numpy() - rows[0]
            z *= rows[1]
            if self._statistic == "max":
                distance = float(max(-z.min(), z.max())) - 1
            else:
                distance = math.sqrt(z.dot(z) / len(z)) - 1
            logits = self._weight.dot(z) + self._bias if router.down is None else router.logits(torch.from_numpy(z))
        return self._soft_top_k(logits.tolist(), distance, cluster)

    def _soft_top_k(self, logits: list[float], distance: float, cluster: int) -> TokenRouting:
        lora = self._num_experts
        push = self._strength * (distance if self._reference is None else max(distance - self._reference, 0.0))
        scores = [logit - push for logit in logits[:lora]] + logits[lora:]
        weights, kept, total = [0.0] * len(scores), [], 0.0
        if math.isnan(sum(scores)):
            # Numbers that are none have no order, so nothing can be chosen.
            return TokenRouting([math.nan] * len(scores), distance, cluster, [(0, math.nan)])
        best = max(scores)
        for _ in range(self._top_k):
            score = max(scores)
            if kept and score == -math.inf:
                break
            expert = scores.index(score)
            weights[expert] = math.exp(score - best)
            total += weights[expert]
            kept.append(expert)
            scores[expert] = -math.inf
        for expert in kept:
            weights[expert] /= total
        sent = [(expert, weights[expert]) for expert in kept if expert < lora and weights[expert]]
        return TokenRouting(weights, distance, cluster, sent)


class _Row(NamedTuple):
    """One row with an adapter: its place in the batch, who routes it, and the factors of its experts."""

    row: int
    name: str
    router: TokenRouter | None
    factors: list[tuple[Tensor, Tensor]]
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
        factors = list(zip(a.detach().chunk(num_experts), b.detach().chunk(num_experts, dim=1), strict=True))
        self._rows.append(_Row(row, name, router, factors, scale))
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
        total = result.float()
        tokens, sums = x.float().view(-1, self._in).unbind(0), total.view(-1, self._out).unbind(0)
        for row, name, router, factors, scale in self._rows:
            token = tokens[row]
            routing = UNROUTED if router is None else router.of_row(row, token)
            for expert, weight in routing.sent:
                first, second = factors[expert]
                sums[row].addmv_(second, torch.mv(first, token), alpha=weight * scale)
            if trace is not None:
                trace.add_token(self._module, name, row, routing.weights, routing.distance, routing.cluster)
        return total.to(result.dtype)
