# SPDX-License-Identifier: Apache-2.0
"""The state of the sliding clusters: first centres, the sums of a forward, and the moving average (Section 3.2).

A training forward only adds up sums over its tokens. They are folded into the centres before the next forward: a
forward repeated for gradient checkpointing then sees the clusters of the first one, and one reduction over all layers
keeps data-parallel ranks equal.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .routing import VARIANCE_EPS


# A token this many standard deviations away (or this large, before there are any) is about to overflow. The squares of
# smaller values are finite.
OVERFLOW = 1e15


# Quantiles of the training distances that are stored, so that another one can be chosen at inference.
LEVELS = (0.5, 0.75, 0.9, 0.95, 0.99, 0.999)
# Stands for the quantile of a context length that did not occur in training: no distance is beyond it.
UNSEEN = 2.0**49


class ClusterSums(NamedTuple):
    """Sums over the valid tokens of a forward, in float32. They add up over calls and over ranks.

    Attributes:
        tokens: (N,) tokens per cluster.
        z: (N, C) sum of the normalised tokens.
        z_squared: (N, C) sum of their squares.
        reference: (2, ...) number of tokens times a quantile of their distance, and the number of tokens: (2,) for one
            quantile, (2, levels, buckets) for several and by the length of the context.
    """

    tokens: Tensor
    z: Tensor
    z_squared: Tensor
    reference: Tensor


def quantiles_by_bucket(distance: Tensor, bucket: Tensor, counted: Tensor, buckets: int) -> Tensor:
    """The quantiles `LEVELS` of the distances in each bucket, and how many there are.

    Args:
        distance: (T,).
        bucket: (T,) int64.
        counted: (T,) bool; the others are left out.
        buckets: how many.

    Returns:
        (2, levels, buckets): number times quantile, and number. Quantiles are interpolated as `torch.quantile` does.
    """
    levels = torch.tensor(LEVELS, dtype=distance.dtype, device=distance.device).unsqueeze(1)
    bucket = torch.where(counted, bucket, buckets)
    # Sorted by distance, then by bucket without disturbing that order.
    distance, order = distance.sort()
    bucket, order = bucket[order].sort(stable=True)
    distance = distance[order]
    number = torch.zeros(buckets + 1, dtype=torch.int64, device=distance.device)
    number.scatter_add_(0, bucket, torch.ones_like(bucket))
    first, number = (number.cumsum(0) - number)[:-1], number[:-1]
    place = levels * (number - 1).clamp(min=0)
    low = place.floor()
    index = first + low.long()
    last = len(distance) - 1
    high = distance[(index + (place > low)).clamp(max=last)]
    quantiles = torch.lerp(distance[index.clamp(max=last)], high, place - low)
    number = number.to(distance.dtype).expand_as(quantiles)
    return torch.stack([torch.where(number > 0, number * quantiles, 0), number])


def sum_tokens(
    z: Tensor,
    distance: Tensor,
    cluster: Tensor,
    valid: Tensor | None,
    num_clusters: int,
    quantile: float | None,
    bucket: Tensor | None = None,
    buckets: int = 0,
) -> ClusterSums:
    """The sums that the tokens of one forward contribute to the clusters.

    Args:
        z: (T, C) normalised tokens, or contexts.
        distance: (T,) their distance.
        cluster: (T,) int64 their cluster.
        valid: (T,) bool, False for padding; None if every token counts.
        num_clusters: N.
        quantile: the one quantile of the distance to report; None for none, or for several.
        bucket: (T,) int64 which bucket each length is in, to report the quantiles `LEVELS` by bucket; None for not.
        buckets: how many.

    Tokens that overflowed, or nearly so, are left out: one of them would spoil the clusters for good.
    """
    counted = distance < OVERFLOW if valid is None else (distance < OVERFLOW) & valid
    member = (cluster.unsqueeze(-1) == torch.arange(num_clusters, device=z.device)) & counted.unsqueeze(-1)
    member = member.to(z.dtype)
    # A copy, which is squared in place: one more buffer of the tokens' size costs more than the squares.
    z = torch.where(counted.unsqueeze(-1), z, 0)
    sums = member.t() @ z
    total = counted.sum().to(z.dtype)
    reference = torch.zeros(2, dtype=z.dtype, device=z.device)
    if bucket is not None:
        reference = quantiles_by_bucket(distance, bucket, counted, buckets)
    elif quantile is not None:
        at = torch.nanquantile(distance.masked_fill(~counted, torch.nan), quantile).nan_to_num(0.0)
        reference = torch.stack([total * at, total])
    return ClusterSums(member.sum(0), sums, member.t() @ z.square_(), reference)


def sum_about(x: Tensor, mean: Tensor, var: Tensor, valid: Tensor | None) -> ClusterSums:
    """The sums for mean and variance of all tokens of a forward: like `sum_tokens` with one cluster, in fewer passes.

    Args:
        x: (T, C) tokens.
        mean: (1, C) running mean.
        var: (1, C) running variance.
        valid: (T,) bool, False for padding; None if every token counts.
    """
    scale = (var + VARIANCE_EPS).rsqrt()
    offset = x - mean
    # At least the size of every channel of z.
    size = torch.linalg.vector_norm(offset, dim=-1) * scale.amax()
    counted = size < OVERFLOW if valid is None else (size < OVERFLOW) & valid
    offset.masked_fill_(~counted.unsqueeze(-1), 0)
    first = offset.sum(0, keepdim=True) * scale
    second = offset.square_().sum(0, keepdim=True) * scale.square()
    return ClusterSums(counted.sum().to(x.dtype).view(1), first, second, x.new_zeros(2))


def reference_row(reference: Tensor, quantile: float) -> Tensor:
    """The distance up to which a context counts as in domain, for each context length.

    Lengths that training did not reach have that of the longest one it did.

    Args:
        reference: (levels, buckets) running quantiles.
        quantile: which one; between two of `LEVELS` it is interpolated, beyond them it is the last.

    Returns:
        (buckets,).
    """
    upper = next((i for i, level in enumerate(LEVELS) if level >= quantile), len(LEVELS) - 1)
    lower = max(0, upper - 1)
    span = LEVELS[upper] - LEVELS[lower]
    share = min(1.0, max(0.0, (quantile - LEVELS[lower]) / span)) if span else 0.0
    row = torch.lerp(reference[lower], reference[upper], share)
    seen = torch.arange(len(row), device=row.device).where(row < UNSEEN, 0)
    return row[seen.cummax(0).values]


@torch.no_grad()
def slide(
    center: Tensor,
    var: Tensor,
    spread: Tensor,
    count: Tensor,
    reference: Tensor | None,
    sums: ClusterSums,
    momentum: float,
) -> None:
    """Move each centre and variance towards the tokens assigned to it, in place.

    With eta = 1 - momentum, m and s the mean and variance of the assigned tokens, the average of the two distributions
    with weights 1 - eta and eta has the mean c + eta (m - c) and the variance
    (1 - eta) v + eta (s + (1 - eta) (m - c)^2). The last term keeps clusters that get one token a step from
    collapsing. Clusters without tokens stay.

    Args:
        center: (N, C).
        var: (N, C).
        spread: (N, C) the variances by which the tokens were normalised: `var`, or more where it has a floor.
        count: (N,) int64 tokens seen so far.
        reference: running quantile of the distance, () or (levels, buckets), or None.
        sums: what the last forward saw, normalised with this very `center` and `spread`.
        momentum: share of the old value that stays.
    """
    tokens = sums.tokens.unsqueeze(-1)
    eta = (1 - momentum) * (tokens > 0).to(var.dtype)
    shift = sums.z / tokens.clamp(min=1)
    within = (sums.z_squared / tokens.clamp(min=1) - shift.square()).clamp(min=0)
    scale = spread + VARIANCE_EPS
    center.add_(eta * scale.sqrt() * shift)
    var.mul_(1 - eta).add_(eta * scale * (within + (1 - eta) * shift.square()))
    if reference is not None:
        total = sums.reference[1]
        latest = sums.reference[0] / total.clamp(min=1)
        # One quantile starts at 0, several at `UNSEEN`.
        first = reference >= UNSEEN if reference.dim() else count.sum() == 0
        moved = torch.where(first, latest, torch.lerp(latest, reference, momentum))
        reference.copy_(torch.where(total > 0, moved, reference))
    count.add_(sums.tokens.round().long())


@torch.no_grad()
def first_clusters(
    x: Tensor, valid: Tensor | None, num_clusters: int, generator: torch.Generator
) -> tuple[Tensor, Tensor] | None:
    """Centres from the tokens of the first batch by k-means++ seeding, and the batch's variance for each of them.

    Seeding by squared distance finds the few far tokens (a begin-of-text token with its huge activations) that a
    uniform draw would miss. The variance starts wide and narrows as the clusters slide.

    Args:
        x: (T, C) float tokens.
        valid: (T,) bool, False for padding; None if every token counts.
        num_clusters: N.
        generator: source of randomness, on the CPU.

    Returns:
        centre and variance, each (N, C); None if no token is valid.
    """
    x = x if valid is None else x[valid]
    x = x[x.abs().amax(-1) < OVERFLOW]
    if len(x) == 0:
        return None
    chosen = x[torch.randint(len(x), (1,), generator=generator).to(x.device)]
    nearest = (x - chosen).square().sum(-1)
    for _ in range(num_clusters - 1):
        # The floor matters only if there are fewer distinct tokens than clusters; then any choice will do.
        index = torch.multinomial((nearest + torch.finfo(x.dtype).tiny).cpu(), 1, generator=generator).to(x.device)
        nearest = torch.minimum(nearest, (x - x[index]).square().sum(-1))
        chosen = torch.cat([chosen, x[index]])
    var = x.var(0, correction=0) if len(x) > 1 else torch.ones_like(x[0])
    return chosen, var.expand(num_clusters, -1).clone()


@torch.no_grad()
def first_mean(
    x: Tensor, valid: Tensor | None, add_up: Callable[[Tensor], None] = lambda sums: None
) -> tuple[Tensor, Tensor] | None:
    """Mean and variance of the first batch's tokens, each (1, C); None if no token is valid.

    Args:
        x: (T, C) float tokens.
        valid: (T,) bool, False for padding; None if every token counts.
        add_up: adds a tensor up over data-parallel ranks, in place.
    """
    x = x if valid is None else x[valid]
    x = x[x.abs().amax(-1) < OVERFLOW]
    sums = torch.cat([x.sum(0), x.new_tensor([len(x)])])
    add_up(sums)
    tokens = sums[-1]
    if tokens == 0:
        return None
    mean = sums[:-1] / tokens
    spread = (x - mean).square().sum(0)
    add_up(spread)
    return mean.unsqueeze(0), (spread / tokens if tokens > 1 else torch.ones_like(spread)).unsqueeze(0)
