# SPDX-License-Identifier: Apache-2.0
"""Rows of one token each on a CPU, which is what generation reads: less work for the same numbers.

There, reading a number from a tensor costs no wait. So the few numbers of a token's routing are Python's, and what its
weights leave out is not computed: of E experts at most K are read from memory, and none for a token that goes past
them all. The vectors are so short that beginning an operation costs more than the operation, most of all in a small
model, whose weights push the code of the one before out of the cache: NumPy begins with the least.
What this replaces is in `method/linear.py` and `method/routing.py`; the results differ by rounding alone.

Importing `slim_core.inference` installs it, for the engine and for everything else in the process that sets rows:
`model.generate(..., adapter_names=...)` of a `PeftModel` too. Without that import the same rows are computed by torch.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..method import ClusterTables, Linear, Router, SlimConfig
from ..method.contexts import Sequences
from ..method.routing import VARIANCE_EPS
from ..peft_tools import RoutingTrace, TokenRouting
from .single_token_contexts import token_contexts


# With more experts for each token, or more rows, the stacked products of many tokens are faster.
MOST_EXPERTS = 4
MOST_ROWS = 8
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# What a plain LoRA does with every token.
UNROUTED = TokenRouting([1.0], 0.0, -1, [(0, 1.0)])


def install() -> None:
    """Let every SLIM layer of this process compute rows of one token in this way."""
    Linear.rows_kernel = staticmethod(add_rows)


def add_rows(layer: Linear, x: Tensor, result: Tensor) -> Tensor | None:
    """What the rows of the running batch add to one Linear, where each brings one token: a `RowsKernel`.

    Args:
        layer: the Linear; its context has rows.
        x: (B, C_in) or (B, 1, C_in) its input.
        result: of its base layer.

    Returns:
        `result` with the rows' experts, in place if it is float32; None where this is not made for the rows, the
        device, the dtype or the mode.
    """
    context = layer.context
    rows = context.rows
    if torch.compiler.is_compiling() or not _is_one_token_each(layer, x, result):
        return None
    if not (context.trace is None or isinstance(context.trace, RoutingTrace)):
        return None
    if layer not in rows.kept:
        rows.kept[layer] = _token_rows(layer)
    kept = rows.kept[layer]
    return None if kept is None else kept.add(x, result, context.sequences, context.trace)


def _is_one_token_each(layer: Linear, x: Tensor, result: Tensor) -> bool:
    """Whether `x` holds a token for each row, in a place and mode that `TokenRows` is made for."""
    context = layer.context
    rows, sequences = len(context.rows.adapter_names), context.sequences
    if context.contextual and (sequences is None or sequences.tokens != 1 or sequences.batch != rows):
        return False
    return (
        x.is_cpu
        and x.numel() == rows * layer.in_features
        and x.shape[0] == rows
        and x.dtype == result.dtype
        and x.dtype in DTYPES
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and x.is_contiguous()
        and result.is_contiguous()
    )


def _token_rows(layer: Linear) -> TokenRows | None:
    """The batch's rows at one Linear; None if one of them needs more than a token at a time."""
    batch = layer.context.rows
    found = TokenRows(layer.module_name, layer.in_features, layer.out_features)
    rows = [(row, name) for row, name in enumerate(batch.adapter_names) if name in layer.slim_A]
    if len(rows) > MOST_ROWS or not all(_is_plain(layer, name) for name in {name for _, name in rows}):
        return None
    for row, name in rows:
        config = layer.slim_config[name]
        router = _router(layer, name) if config.routed else None
        scale = 1.0 if name in layer.folded else layer.scaling[name]
        experts = config.num_experts if config.routed else 1
        strength = batch.strengths and batch.strengths[row]
        strength = config.yield_strength if strength is None else strength
        found.put(row, name, layer.slim_A[name], layer.slim_B[name], experts, scale, router, strength)
    return found


def _is_plain(layer: Linear, name: str) -> bool:
    """Whether an adapter is the sum over few experts of w s B A x, with nothing to draw, mask, cast or gather."""
    config = layer.slim_config[name]
    masked = config.merge != "none" and config.mask_rate > 0 and name not in layer.folded
    factors = (layer.slim_A[name], layer.slim_B[name])
    in_pieces = config.num_experts == 1 or layer.slim_B[name].t().is_contiguous()
    return (
        not masked
        and in_pieces
        and not layer.training
        and name not in layer.slim_column_index
        and (config.top_k <= MOST_EXPERTS or not config.routed)
        and all(factor.is_cpu and factor.dtype == torch.float32 for factor in factors)
    )


def _router(layer: Linear, name: str) -> TokenRouter:
    """The adapter's router; one while the rows are set, for all Linears that share it."""
    kept, router = layer.context.rows.kept, layer.routers[name]
    if router not in kept:
        router.clusters.fold_earlier(learning=False)
        kept[router] = TokenRouter(router.config, *router.tables(training=False), router.readers, router.key, name)
    return kept[router]


class TokenRouter:
    """One router for one token at a time, and its answers while the Linears of a block share them.

    Args:
        config: of the adapter.
        tables: its clusters, float32.
        reference: the distance that counts as in domain, () or (buckets,); None with the paper's yielding.
        router: its weights.
        readers: how many Linears read each input's routing.
        key: by which a cache remembers its sums.
        name: of the adapter.
    """

    def __init__(
        self,
        config: SlimConfig,
        tables: ClusterTables,
        reference: Tensor | None,
        router: Router,
        readers: int,
        key: str,
        name: str,
    ) -> None:
        self._config, self._readers, self._key, self._name = config, readers, key, name
        self._contextual = config.distance_scope == "context"
        self._opening = tuple(config.turn_opening or ())
        self._center, self._scale, self._direction, self._near = (table.detach().numpy() for table in tables)
        weight, bias, *hidden = router[:4]
        self._down, self._up = (None if part is None else part.detach().float().numpy() for part in hidden)
        self._mean = self._spread = None
        if router.mean is not None and router.down is not None:
            self._mean = router.mean[0].detach().numpy()
            self._spread = (router.var[0] + VARIANCE_EPS).rsqrt().detach().numpy()
        elif router.mean is not None:
            weight, bias = router.folded()
        self._weight, self._bias = (part.detach().float().numpy() for part in (weight, bias))
        self._reference = None if reference is None else reference.reshape(-1).tolist()
        self._input: Tensor | None = None
        self._version = self._reads = 0
        self._found: dict[int, TokenRouting] = {}
        # Of the running input, by row: sums of the contexts, their counts and buckets.
        self._sums: np.ndarray | None = None
        self._counts: list[int] = []
        self._buckets: list[int] = []
        # By row, and how many: excesses of the routers before this one, where they are carried up.
        self._total: np.ndarray | None = None
        self._below = 0

    def begin(self, x: Tensor, tokens: np.ndarray, sequences: Sequences | None) -> None:
        """One of the readers comes with the input `x` of all rows, (B, C) float32 in `tokens`."""
        version = 0 if x.is_inference() else x._version
        if self._input is not x or self._version != version or self._reads == self._readers:
            self._input, self._version, self._reads, self._found = x, version, 0, {}
            if self._contextual:
                self._go_on(tokens, sequences)
        self._reads += 1

    def _go_on(self, tokens: np.ndarray, sequences: Sequences) -> None:
        """Add the tokens to the sums of their contexts, for the cache to remember."""
        self._counts, self._buckets, goes_on, own = token_contexts(sequences, self._opening)
        if self._config.carries_up:
            excess = sequences.excess_of(self._name)
            self._total, self._below = excess.total.numpy()[:, 0], excess.routers
            excess.routers += 1
        key = sequences.key_of_call(self._key)
        steps = np.empty((tokens.shape[0], 2, tokens.shape[1]), np.float32)
        before, self._sums = steps[:, 0], steps[:, 1]
        before[:] = 0 if sequences.state is None else sequences.state.kept_sums(key).numpy()[:, -1]
        carried = before if goes_on is None else np.where(goes_on, before, 0)
        np.add(carried, tokens if own is None else np.where(own, tokens, 0), out=self._sums)
        if sequences.ended is not None:
            kept = torch.from_numpy(steps)
            sequences.ended.sums[key] = kept if sequences.trail else kept[:, -1:]

    def of_row(self, row: int, x: np.ndarray, strength: float) -> TokenRouting:
        """Routing of the token `x`, (C,) float32, which is row `row` of the input that was begun with."""
        found = self._found.get(row)
        if found is None:
            with np.errstate(all="ignore"):  # NaNs propagate, as everywhere
                found = self._found[row] = self._route(row, x, strength)
        return found

    def _route(self, row: int, x: np.ndarray, strength: float) -> TokenRouting:
        placed, bucket, closed = x, 0, False
        if self._contextual:
            count = max(self._counts[row], 1)
            placed, bucket = self._sums[row] / count, self._buckets[row]
            closed = count <= self._config.context_warmup
        cluster = int((self._direction.dot(placed) + self._near).argmin())
        z = placed - self._center[cluster]
        z *= self._scale[cluster]
        if self._config.distance == "max":
            distance = float(max(-z.min(), z.max())) - 1
        else:
            distance = math.sqrt(z.dot(z) / len(z)) - 1
        reference = 0.0 if self._reference is None else self._reference[bucket]
        gate, push = 1.0, 0.0
        excess = distance if self._reference is None else max(distance - reference, 0.0)
        if self._total is not None:
            self._total[row] += excess
            excess = float(self._total[row]) / (self._below + 1)
        if self._config.yield_mode == "gate":
            gate = 0.0 if closed else min(max(1 - strength * excess, 0.0), 1.0)
        else:
            push = strength * excess
        found = TokenRouting([], distance, cluster, [], gate, reference)
        if gate == 0.0:
            return self._past_all(found)
        if self._contextual:
            z = x if self._mean is None else (x - self._mean) * self._spread
        if self._down is not None:
            hidden = self._down.dot(z)
            z = z + self._up.dot(hidden / (1 + np.exp(-hidden)))
        return self._soft_top_k((self._weight.dot(z) + self._bias).tolist(), push, found)

    def _past_all(self, found: TokenRouting) -> TokenRouting:
        lora, identity = self._config.num_experts, self._config.num_identity
        return found._replace(weights=[0.0] * lora + [1 / max(identity, 1)] * identity)

    def _soft_top_k(self, scores: list[float], push: float, found: TokenRouting) -> TokenRouting:
        lora, gate = self._config.num_experts, found.gate
        if push:
            scores[:lora] = [score - push for score in scores[:lora]]
        weights, kept, total, best = [0.0] * len(scores), [], 0.0, max(scores)
        if math.isnan(sum(scores) + gate) or best == -math.inf:
            # NaNs have no order, so nothing can be chosen.
            return found._replace(weights=[math.nan] * len(scores), sent=[(0, math.nan)])
        for _ in range(self._config.top_k):
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
            weights[expert] = weight = weights[expert] / total * gate
            if expert < lora and weight:
                sent.append((expert, weight))
        if gate < 1.0:
            rest = (1 - gate) / max(self._config.num_identity, 1)
            weights[lora:] = [weight + rest for weight in weights[lora:]]
        return found._replace(weights=weights, sent=sent)


class _Row(NamedTuple):
    """One row with an adapter: its place in the batch, who routes it, and the factors of its experts.

    Factors are pairs of (r, C_in) and (r, C_out), each in one piece of memory.
    """

    row: int
    name: str
    router: TokenRouter | None
    factors: list[tuple[np.ndarray, np.ndarray]]
    scale: float
    strength: float


class TokenRows:
    """What the rows of one batch add to the result of one Linear."""

    def __init__(self, module: str, in_features: int, out_features: int) -> None:
        self._module, self._in, self._out = module, in_features, out_features
        self._rows: list[_Row] = []
        self._routers: list[TokenRouter] = []

    def put(
        self,
        row: int,
        name: str,
        a: Tensor,
        b: Tensor,
        num_experts: int,
        scale: float,
        router: TokenRouter | None,
        strength: float,
    ) -> None:
        """Row `row` belongs to adapter `name`, with stacked factors (E r, C_in) and (C_out, E r), both float32."""
        first, second = (t.detach().numpy().reshape(num_experts, -1, t.shape[1]) for t in (a, b.t()))
        self._rows.append(_Row(row, name, router, list(zip(first, second, strict=True)), scale, strength))
        if router is not None and router not in self._routers:
            self._routers.append(router)

    def add(self, x: Tensor, result: Tensor, sequences: Sequences | None, trace: RoutingTrace | None) -> Tensor:
        """Add the experts of every row to `result`, (B, C_out) or (B, 1, C_out); in place, if it is float32.

        Args:
            x: (B, C_in) or (B, 1, C_in) tokens; half precision is computed in float32 and rounded once.
            result: of the base layer, in the dtype of `x`.
            sequences: what the running forward reads, where an adapter asks for contexts.
            trace: where the routing is recorded.
        """
        if not self._rows:
            return result
        total = result if result.dtype == torch.float32 else result.float()
        tokens, sums = _rows(x, self._in), _rows(total, self._out)
        for router in self._routers:
            router.begin(x, tokens, sequences)
        for row, name, router, factors, scale, strength in self._rows:
            token, added = tokens[row], sums[row]
            routing = UNROUTED if router is None else router.of_row(row, token, strength)
            for expert, weight in routing.sent:
                first, second = factors[expert]
                hidden = first.dot(token)
                hidden *= weight * scale
                added += hidden.dot(second)
            if trace is not None:
                trace.add_token(self._module, name, row, routing)
        return total if total is result else total.to(result.dtype)


def _rows(x: Tensor, features: int) -> np.ndarray:
    """(B, features) float32 rows; of a float32 tensor in its own memory."""
    if x.dtype != torch.float32:
        x = x.float()
    return (x.detach() if x.requires_grad else x).numpy().reshape(-1, features)
