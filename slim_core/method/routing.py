# SPDX-License-Identifier: Apache-2.0
"""Routing of SLIM: nearest cluster, distance, router and soft top-K (Sections 3.2 and 3.3 of the paper).

How the distance then closes the gate is in `gate.py`.

Everything here is a pure function of tensors. Shapes: T tokens, C input channels, N clusters,
E LoRA experts followed by I identity experts. The functions compute in the dtype they are given; the layer gives them
float32.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .gate import Yielding, apply_gate, excess_over_reference, gate_of, lower_logits


# Added to a variance before its root is taken: channels that never moved in training get a finite z.
VARIANCE_EPS = 1e-6


class Routing(NamedTuple):
    """How each token of one Linear was routed.

    Attributes:
        weights: (T, E + I) weights of the kept experts, zero for the others; rows sum to 1, except where a gate closes
        and there is no identity expert.
        logits: (T, E + I) what the router said, before yielding.
        distance: (T,) d, how far the token, or its context, is from its cluster.
        cluster: (T,) int64 index of the nearest cluster.
        z: (T, C) the token, or its context, normalised by its cluster.
        gate: (T,) g by which the LoRA experts' weights were multiplied; 1 without a gate.
        reference: (T,) the distance up to which nothing yields; 0 with the paper's yielding.
        excess: (T,) the part of this router's distance that is beyond the reference.
    """

    weights: Tensor
    logits: Tensor
    distance: Tensor
    cluster: Tensor
    z: Tensor
    gate: Tensor
    reference: Tensor
    excess: Tensor


class Router(NamedTuple):
    """Weights of the router: logits = W (z + U silu(D z)) + b, with D and U only where there is a residual block.

    Attributes:
        weight: (E + I, C) W.
        bias: (E + I,) b.
        down: (H, C) D, or None.
        up: (C, H) U, or None.
        mean: (1, C) and `var` (1, C) by which tokens are normalised; None if what comes is normalised already.
    """

    weight: Tensor
    bias: Tensor
    down: Tensor | None = None
    up: Tensor | None = None
    mean: Tensor | None = None
    var: Tensor | None = None

    def folded(self) -> tuple[Tensor, Tensor]:
        """(E + I, C) weight and (E + I,) bias for tokens as they are: the normalisation is part of them."""
        if self.mean is None or self.var is None:
            return self.weight, self.bias
        weight = self.weight.to(self.var.dtype) * (self.var + VARIANCE_EPS).rsqrt()
        return weight, self.bias.to(weight.dtype) - (weight * self.mean).sum(-1)

    def logits(self, z: Tensor) -> Tensor:
        """(T, C) to (T, E + I), in the dtype of `z` whatever the dtype of the weights."""
        if self.mean is not None and self.var is not None:
            if self.down is None:
                return F.linear(z, *self.folded())
            z = (z - self.mean) * (self.var + VARIANCE_EPS).rsqrt()
        if self.down is not None and self.up is not None:
            z = z + F.linear(F.silu(F.linear(z, self.down.to(z.dtype))), self.up.to(z.dtype))
        return F.linear(z, self.weight.to(z.dtype), self.bias.to(z.dtype))


class ClusterTables(NamedTuple):
    """The clusters in the form in which tokens are compared with them.

    Attributes:
        center: (N, C) centres.
        scale: (N, C) 1 / sigma.
        direction: (N, C) and `bias` (N,): `direction @ x + bias` orders the centres by their distance from x.
    """

    center: Tensor
    scale: Tensor
    direction: Tensor
    bias: Tensor


def cluster_tables(center: Tensor, var: Tensor) -> ClusterTables:
    """Prepare the clusters for `route`.

    Args:
        center: (N, C) centres.
        var: (N, C) variances.
    """
    # |x - c|^2 without the (T, N, C) difference and without |x|^2, which is the same for every centre. The centres are
    # taken relative to their mean, since a large common offset would cost the digits that distinguish them.
    mean = center.mean(0)
    offset = center - mean
    bias = (offset * (offset + 2 * mean)).sum(-1)
    return ClusterTables(center, (var + VARIANCE_EPS).rsqrt(), -2 * offset, bias)


def nearest_cluster(x: Tensor, tables: ClusterTables) -> Tensor:
    """Index of the centre with the least Euclidean distance; (T, C) to (T,) int64."""
    return F.linear(x, tables.direction, tables.bias).argmin(-1)


def normalise(x: Tensor, tables: ClusterTables, cluster: Tensor) -> Tensor:
    """z = (x - c_n) / sigma_n for each token's cluster n; (T, C) and (T,) to (T, C)."""
    # In place on the gathered centres: the tokens are the largest tensor here, and a buffer more of their size costs
    # more than the operation that fills it.
    z = tables.center.index_select(0, cluster).neg_().add_(x)
    return z.mul_(tables.scale.index_select(0, cluster))


def domain_distance(z: Tensor, statistic: Literal["max", "rms"]) -> Tensor:
    """d: how many standard deviations beyond the first the token lies from its cluster; (T, C) to (T,)."""
    if statistic == "max":
        if z.requires_grad:
            # The same value, with a gradient for one channel per token and without a second copy of z.
            peak = z.detach().abs().argmax(-1, keepdim=True)
            return z.gather(-1, peak).squeeze(-1).abs() - 1
        # Not vector_norm(ord=inf), which is 20 times slower on CPUs.
        return z.abs().amax(-1) - 1
    return torch.linalg.vector_norm(z, dim=-1) / math.sqrt(z.shape[-1]) - 1


def soft_top_k(w: Tensor, k: int) -> Tensor:
    """Softmax, keep the `k` largest, divide by their sum; (T, E + I) to (T, E + I) with zeros.

    A softmax over only the kept ones gives the same numbers and cannot divide by an underflown sum.
    """
    if k == w.shape[-1]:
        return w.softmax(-1)
    kept, index = w.topk(k, dim=-1, sorted=False)
    return torch.zeros_like(w).scatter(-1, index, kept.softmax(-1))


def route(
    x: Tensor,
    tables: ClusterTables,
    router: Router,
    *,
    num_experts: int,
    top_k: int,
    statistic: Literal["max", "rms"],
    yielding: Yielding,
    context: Tensor | None = None,
) -> Routing:
    """Steps 1 to 5 of one layer: nearest cluster, distance, router, yielding, soft top-K.

    Args:
        x: (T, C) tokens.
        tables: the clusters.
        router: its weights.
        num_experts: E.
        top_k: K.
        statistic: which distance.
        yielding: how LoRA experts yield as the distance grows.
        context: (T, C) contexts of the tokens, whose distance counts; None for that of the tokens themselves, which
            the router then sees normalised by their cluster.
    """
    placed = x if context is None else context
    cluster = nearest_cluster(placed, tables)
    z = normalise(placed, tables, cluster)
    distance = domain_distance(z, statistic)
    logits = router.logits(z if context is None else x)
    excess = excess_over_reference(distance, yielding)
    mean_excess = excess if yielding.earlier is None else yielding.earlier.mean_with(excess)
    if yielding.mode == "gate":
        gate = gate_of(mean_excess, yielding)
        weights = apply_gate(soft_top_k(logits, top_k), gate, num_experts)
    else:
        gate = torch.ones_like(distance)
        weights = soft_top_k(lower_logits(logits, mean_excess, yielding.strength, num_experts), top_k)
    reference = yielding.reference
    level = torch.zeros_like(distance) if reference is None else reference.expand_as(distance)
    return Routing(weights, logits, distance, cluster, z, gate, level, excess)
