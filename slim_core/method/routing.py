# SPDX-License-Identifier: Apache-2.0
"""Routing of SLIM: sliding clusters, weight yielding and soft top-K (Section 3.2 and 3.3 of the paper).

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


# Added to a variance before its root is taken: channels that never moved in training get a finite z.
VARIANCE_EPS = 1e-6


class Routing(NamedTuple):
    """How each token of one Linear was routed.

    Attributes:
        weights: (T, E + I) weights of the kept experts, zero for the others; rows sum to 1.
        logits: (T, E + I) what the router said, before yielding.
        distance: (T,) d, how far the token is from its cluster.
        cluster: (T,) int64 index of the nearest cluster.
        z: (T, C) the token normalised by its cluster.
    """

    weights: Tensor
    logits: Tensor
    distance: Tensor
    cluster: Tensor
    z: Tensor


class Router(NamedTuple):
    """Weights of the router: logits = W (z + U silu(D z)) + b, with D and U only where there is a residual block.

    Attributes:
        weight: (E + I, C) W.
        bias: (E + I,) b.
        down: (H, C) D, or None.
        up: (C, H) U, or None.
    """

    weight: Tensor
    bias: Tensor
    down: Tensor | None = None
    up: Tensor | None = None

    def logits(self, z: Tensor) -> Tensor:
        """(T, C) to (T, E + I), in the dtype of `z` whatever the dtype of the weights."""
        if self.down is not None:
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
    # |x - c|^2 without the (T, N, C) difference and without |x|^2, which is the same for every centre. The centres
    # are taken relative to their mean: a large common offset would otherwise cost the digits that tell them apart.
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
            # The same number with a gradient that touches one channel a token and keeps no second copy of z.
            peak = z.detach().abs().argmax(-1, keepdim=True)
            return z.gather(-1, peak).squeeze(-1).abs() - 1
        # Not vector_norm(ord=inf), which is 20 times slower on CPUs.
        return z.abs().amax(-1) - 1
    return torch.linalg.vector_norm(z, dim=-1) / math.sqrt(z.shape[-1]) - 1


def yield_weights(logits: Tensor, distance: Tensor, strength: float, num_experts: int) -> Tensor:
    """Weight yielding: LoRA experts give way by `strength * distance`, identity experts stay.

    Args:
        logits: (T, E + I) router logits.
        distance: (T,) d, or what of it exceeds the calibrated reference.
        strength: factor in front of the distance.
        num_experts: E.

    Returns:
        (T, E + I).
    """
    if not torch.is_grad_enabled():
        # The same products and differences as below, to the bit: a gradient checkpoint runs both.
        weights = logits.clone()
        weights.narrow(-1, 0, num_experts).sub_((strength * distance).unsqueeze(-1))
        return weights
    lora, identity = logits.split([num_experts, logits.shape[-1] - num_experts], dim=-1)
    return torch.cat([lora - (strength * distance).unsqueeze(-1), identity], dim=-1)


def soft_top_k(w: Tensor, k: int) -> Tensor:
    """Softmax, keep the `k` largest, divide by their sum; (T, E + I) to (T, E + I) with zeros.

    The softmax over the kept ones alone is the same number and cannot divide by an underflown sum.
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
    statistic: Literal["max", "rms"] = "max",
    strength: float = 1.0,
    reference: Tensor | None = None,
) -> Routing:
    """Steps 1 to 5 of one layer: nearest cluster, distance, router, yielding, soft top-K.

    Args:
        x: (T, C) tokens.
        tables: the clusters.
        router: its weights.
        num_experts: E.
        top_k: K.
        statistic: which distance.
        strength: yield strength.
        reference: () the distance that counts as in domain (calibrated yielding), or None (the paper's).
    """
    cluster = nearest_cluster(x, tables)
    z = normalise(x, tables, cluster)
    distance = domain_distance(z, statistic)
    logits = router.logits(z)
    beyond = distance if reference is None else F.relu(distance - reference)
    weights = soft_top_k(yield_weights(logits, beyond, strength, num_experts), top_k)
    return Routing(weights, logits, distance, cluster, z)
