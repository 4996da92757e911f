# SPDX-License-Identifier: Apache-2.0
"""The sliding clusters of one router (Section 3.2): where they are, when they start, and how they learn.

training forward   sums over its tokens become pending; over all ranks, when the model's forward ends
backward           a checkpointed forward is repeated and sees the same clusters; nothing is added up
next training      the pending sums are folded into the clusters, on every rank alike, and forgotten
evaluation, save   in between: folded as well, but with other ranks present they stay pending, marked as folded,
                   since DistributedDataParallel may reset the clusters to another rank's
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from peft.tuners._buffer_dict import BufferDict
from torch import Tensor, nn

from . import clusters, data_parallel
from .config import SlimConfig
from .context import ForwardContext
from .contexts import LENGTH_BUCKETS, Contexts
from .routing import ClusterTables, Routing, cluster_tables


class StatisticDict(BufferDict):
    """Buffers that move between devices but keep their dtype: `model.bfloat16()` must not round the clusters."""

    def __init__(self) -> None:
        super().__init__({}, persistent=True)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> StatisticDict:
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, old in before.items():
            new = self._buffers[name]
            if old is not None and new is not None and new.dtype != old.dtype:
                self._buffers[name] = old.to(new.device)
        return self


class PendingSums(NamedTuple):
    """Sums for the clusters.

    Attributes:
        forward: the training forward that made them.
        sums: over its tokens.
        counted: (N,) what the clusters had counted before it, by which one sees whether the sums are in them.
        tokens: the same over tokens, as one cluster; None if the clusters are those of tokens.
        folded: whether they are, as far as this rank knows.
    """

    forward: int | None
    sums: clusters.ClusterSums
    counted: Tensor
    tokens: clusters.ClusterSums | None = None
    folded: bool = False

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors that are summed over ranks."""
        return (*self.sums, *(self.tokens or ()))

    def add(self, sums: clusters.ClusterSums, tokens: clusters.ClusterSums | None) -> None:
        """Add the sums of more tokens, in place."""
        for old, new in zip(self.tensors, (*sums, *(tokens or ())), strict=True):
            old.add_(new)


def entry(container: nn.ParameterDict | BufferDict, adapter_name: str) -> Tensor | None:
    """The tensor of an adapter, or None."""
    # PEFT's BufferDict has no `get`.
    return container[adapter_name] if adapter_name in container else None  # noqa: SIM401


def _take(first: tuple[Tensor, Tensor] | None, into: Sequence[Tensor]) -> bool:
    """Copy a first mean and variance, if there are any. Returns whether there were."""
    for old, new in zip(into, first or (), strict=False):
        old.copy_(new)
    return first is not None


class SlidingClusters:
    """The clusters of one adapter at one router.

    Their tensors are in the layer's containers, which PEFT saves, moves and deletes from; everything else is here.

    Args:
        adapter_name: the adapter.
        config: its configuration.
        containers: the layer's, by name, as in `NAMES`.
        channels: C_in.
        context: of the model.
        seed: for the first centres.
    """

    NAMES = ("slim_center", "slim_var", "slim_count", "slim_token_mean", "slim_token_var", "slim_reference")

    def __init__(
        self,
        adapter_name: str,
        config: SlimConfig,
        containers: Mapping[str, StatisticDict],
        channels: int,
        context: ForwardContext,
        seed: int,
    ) -> None:
        self._name, self._config = adapter_name, config
        self._containers, self._context, self._seed = dict(containers), context, seed
        # What the last training forward saw, until it is folded in.
        self._pending: PendingSums | None = None
        # Whether there are first centres. Asked for at every training forward, read from the device once.
        self._started = False
        self._allocate(channels)

    def _allocate(self, channels: int) -> None:
        config = self._config
        shape = (config.num_clusters, channels)
        contextual = config.distance_scope == "context"
        # A first batch replaces the zeros; until then a token is its own z.
        center = torch.randn(shape) if config.cluster_init == "random" else torch.zeros(shape)
        count = torch.zeros(config.num_clusters, dtype=torch.int64)
        tensors = {"slim_center": center, "slim_var": torch.ones(shape), "slim_count": count}
        if contextual:
            tensors |= {"slim_token_mean": torch.zeros(1, channels), "slim_token_var": torch.ones(1, channels)}
        if config.format_version == 1 and config.yield_mode != "paper":
            tensors["slim_reference"] = torch.zeros(())
        elif config.yield_mode != "paper":
            buckets = LENGTH_BUCKETS if contextual else 1
            tensors["slim_reference"] = torch.full((len(clusters.LEVELS), buckets), clusters.UNSEEN)
        for name, tensor in tensors.items():
            self._containers[name][self._name] = tensor

    def _entry(self, name: str) -> Tensor | None:
        return entry(self._containers[name], self._name)

    @property
    def center(self) -> Tensor:
        """(N, C_in) float32 centres."""
        return self._containers["slim_center"][self._name]

    @property
    def var(self) -> Tensor:
        """(N, C_in) float32 variances."""
        return self._containers["slim_var"][self._name]

    @property
    def count(self) -> Tensor:
        """(N,) int64 tokens or contexts that each cluster has seen."""
        return self._containers["slim_count"][self._name]

    @property
    def token_mean(self) -> Tensor | None:
        """(1, C_in) float32 running mean of the tokens; None where the clusters are those of tokens."""
        return self._entry("slim_token_mean")

    @property
    def token_var(self) -> Tensor | None:
        """(1, C_in) float32 running variance of the tokens; None where the clusters are those of tokens."""
        return self._entry("slim_token_var")

    @property
    def spread(self) -> Tensor:
        """(N, C_in) float32 variances that contexts are normalised by: at least a share of the tokens' variance."""
        token_var, floor = self.token_var, self._config.context_floor
        return torch.maximum(self.var, token_var * floor) if floor and token_var is not None else self.var

    @property
    def _of_tokens(self) -> tuple[Tensor, Tensor] | None:
        """The tokens' mean and variance; None where the clusters are those of tokens."""
        mean, var = self.token_mean, self.token_var
        return None if mean is None or var is None else (mean, var)

    @property
    def reference(self) -> Tensor | None:
        """Running quantiles of the distance: (levels, buckets) float32, () in format 1, None with the paper's."""
        return self._entry("slim_reference")

    def tables(self) -> tuple[ClusterTables, Tensor | None]:
        """The clusters as `route` wants them, and the distances that count as in domain, () or (buckets,)."""
        return cluster_tables(self.center, self.spread), self.reference_at(self._config.yield_quantile)

    def reference_at(self, quantile: float) -> Tensor | None:
        """The distances that count as in domain at a quantile, (buckets,), or () if only one is stored."""
        reference = self.reference
        if reference is None or reference.dim() < 2:
            return reference
        return clusters.reference_row(reference, quantile)

    # -- learning ------------------------------------------------------------------------------------------------

    def start(self, x: Tensor, contexts: Contexts | None, valid: Tensor | None) -> None:
        """Take the first centres from these tokens, if there are none yet.

        Args:
            x: (T, C_in) float32 tokens.
            contexts: theirs, if the clusters are those of contexts.
            valid: (T,) bool, which of them clusters learn from; None if all.
        """
        if not self._started:
            self._started = self._start(x.detach(), contexts, valid)

    def _start(self, x: Tensor, contexts: Contexts | None, valid: Tensor | None) -> bool:
        if self.count.any():
            return True
        started = True
        shared: list[Tensor] = []
        of_tokens = self._of_tokens
        if of_tokens is not None:
            started = _take(clusters.first_mean(x, valid, self._add_up), of_tokens)
        if self._config.cluster_init == "data":
            # A separate generator: a forward that draws from torch's global one cannot be repeated exactly by a
            # checkpoint.
            generator = torch.Generator().manual_seed(self._seed)
            placed = x if contexts is None else contexts.mean
            buffers = [self.center, self.var]
            started = _take(clusters.first_clusters(placed, valid, self._config.num_clusters, generator), buffers)
            shared += buffers
        if not shared:
            return started
        on_device = torch.tensor(started, device=x.device)
        data_parallel.share_first([*shared, on_device], self._context.process_group)
        return bool(on_device)

    def _add_up(self, sums: Tensor) -> None:
        data_parallel.add_up([sums], self._context.process_group)

    @torch.no_grad()
    def learn(self, routing: Routing, x: Tensor, contexts: Contexts | None, valid: Tensor | None) -> None:
        """Remember the sums of these tokens for `fold`. `x`, `contexts` and `valid` are as in `start`."""
        reference = self.reference
        quantile, bucket, buckets = None, None, 0
        if reference is not None and reference.dim() == 2:
            bucket = torch.zeros_like(routing.cluster) if contexts is None else contexts.bucket
            buckets = reference.shape[1]
        elif reference is not None:
            quantile = self._config.yield_quantile
        sums = clusters.sum_tokens(
            routing.z,
            routing.distance,
            routing.cluster,
            valid,
            self._config.num_clusters,
            quantile,
            bucket,
            buckets,
        )
        of_tokens = self._of_tokens
        tokens = None if of_tokens is None else clusters.sum_about(x, *of_tokens, valid)
        if self._pending is None:
            self._pending = PendingSums(self._context.forward_number, sums, self.count.clone(), tokens)
            self._context.note_learned(self._pending.tensors)
        else:  # the same Linear ran twice in one forward
            self._pending.add(sums, tokens)

    def fold_earlier(self, learning: bool) -> None:
        """Fold in the sums of an earlier forward, now that its backward pass is over.

        Args:
            learning: whether the running forward learns.
        """
        pending = self._pending
        if pending is None:
            return
        running = self._context.forward_number
        if learning and running is not None and pending.forward == running:
            return
        if learning or not pending.folded:
            self._fold(pending, for_good=learning)

    def fold(self) -> None:
        """Fold in the sums of the last forward, if that has not been done, before the clusters are saved."""
        pending = self._pending
        if pending is not None and not pending.folded:
            self._fold(pending, for_good=False)

    def _fold(self, pending: PendingSums, for_good: bool) -> None:
        """Fold the pending sums of the last training forward into the clusters.

        Data-parallel ranks fold together at their next training forward (`for_good`). A rank that saves or evaluates
        before that folds for itself, and DistributedDataParallel then overwrites its clusters with the first rank's,
        or the other way round. So the sums are kept until then, and folded again only if they are not counted yet.
        """
        self._pending = None
        missing = (self.count == pending.counted).all()
        momentum = self._config.cluster_momentum
        # As it was in the forward, before the tokens' variance moves.
        spread = self.spread
        of_tokens = self._of_tokens
        if of_tokens is not None and pending.tokens is not None:
            seen = clusters.ClusterSums(*(tensor * missing for tensor in pending.tokens))
            uncounted = torch.zeros(1, dtype=torch.int64, device=missing.device)
            clusters.slide(*of_tokens, of_tokens[1], uncounted, None, seen, momentum)
        seen = clusters.ClusterSums(*(tensor * missing for tensor in pending.sums))
        clusters.slide(self.center, self.var, spread, self.count, self.reference, seen, momentum)
        if not for_good and data_parallel.is_shared(self._context.process_group):
            self._pending = pending._replace(folded=True)

    def forget(self) -> None:
        """Reset after other clusters were loaded: pending sums belong to the old clusters."""
        self._pending, self._started = None, False
