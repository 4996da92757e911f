# SPDX-License-Identifier: Apache-2.0
"""How a layer's clusters learn: when they start, what a training forward adds up, and when that is folded in.

training forward   sums over its tokens become pending; over all ranks, when the model's forward ends
backward           a checkpointed forward is repeated and sees the same clusters; nothing is added up
next training      the pending sums are folded into the clusters, on every rank alike, and forgotten
evaluation, save   in between: folded as well, but with other ranks about they stay pending, marked as folded,
                   since DistributedDataParallel may take the clusters back to what another rank has
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from peft.tuners._buffer_dict import BufferDict
from torch import Tensor, nn

from . import clusters, data_parallel, merging
from .config import SlimConfig
from .context import ForwardContext
from .contexts import Contexts
from .routing import Routing


class PendingSums(NamedTuple):
    """Sums for the clusters.

    Attributes:
        forward: the training forward that made them.
        sums: over its tokens.
        counted: (N,) what the clusters had counted before it, by which one sees whether the sums are in them.
        tokens: the same over tokens, as one cluster; None where the clusters are those of tokens.
        folded: whether they are, as far as this rank knows.
    """

    forward: int | None
    sums: clusters.ClusterSums
    counted: Tensor
    tokens: clusters.ClusterSums | None = None
    folded: bool = False

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All that is added up over ranks."""
        return (*self.sums, *(self.tokens or ()))

    def add(self, sums: clusters.ClusterSums, tokens: clusters.ClusterSums | None) -> None:
        """Those of more tokens, in place."""
        for old, new in zip(self.tensors, (*sums, *(tokens or ())), strict=True):
            old.add_(new)


def entry(container: nn.ParameterDict | BufferDict, adapter_name: str) -> Tensor | None:
    """The tensor of an adapter, or None."""
    # PEFT's BufferDict has no `get`.
    return container[adapter_name] if adapter_name in container else None  # noqa: SIM401


def _take(first: tuple[Tensor, Tensor] | None, into: list[Tensor]) -> bool:
    """Copy a first mean and variance, if there are any. Whether there are."""
    for old, new in zip(into, first or (), strict=False):
        old.copy_(new)
    return first is not None


class ClusterLearner:
    """The part of a SLIM layer that moves its clusters. Containers are keyed by adapter name."""

    context: ForwardContext
    module_name: str
    slim_config: dict[str, SlimConfig]
    slim_center: BufferDict
    slim_var: BufferDict
    slim_count: BufferDict
    slim_reference: BufferDict
    slim_token_mean: BufferDict
    slim_token_var: BufferDict
    pending: dict[str, PendingSums]
    # Which tokens of the last training forward clusters learn from; None if all of them.
    _valid: dict[str, Tensor | None]
    # Whether there are first centres.
    _started: dict[str, bool]

    def _prepare_to_learn(self, adapter_name: str, x: Tensor, contexts: Contexts | None) -> None:
        # Asked for at every training forward, read from the device once.
        if not self._started.get(adapter_name):
            self._started[adapter_name] = self._start_clusters(adapter_name, x.detach(), contexts)

    def _start_clusters(self, adapter_name: str, x: Tensor, contexts: Contexts | None) -> bool:
        """Take the first centres from these tokens, if there are none yet. Whether there are centres now."""
        config = self.slim_config[adapter_name]
        if self.slim_count[adapter_name].any():
            return True
        valid = self._valid[adapter_name]
        started, shared = True, []
        if contexts is not None:
            of_tokens = [self.slim_token_mean[adapter_name], self.slim_token_var[adapter_name]]
            started = _take(clusters.first_mean(x, valid, self._add_up), of_tokens)
        if config.cluster_init == "data":
            # A generator of its own: a forward that draws from torch's cannot be repeated exactly by a checkpoint.
            generator = torch.Generator().manual_seed(merging.module_seed(config.mask_seed, self.module_name))
            placed = x if contexts is None else contexts.mean
            found = [self.slim_center[adapter_name], self.slim_var[adapter_name]]
            started = _take(clusters.first_clusters(placed, valid, config.num_clusters, generator), found)
            shared += found
        if not shared:
            return started
        on_device = torch.tensor(started, device=x.device)
        data_parallel.share_first([*shared, on_device], self.context.process_group)
        return bool(on_device)

    def _add_up(self, sums: Tensor) -> None:
        data_parallel.add_up([sums], self.context.process_group)

    @torch.no_grad()
    def _learn_from(
        self, adapter_name: str, config: SlimConfig, routing: Routing, x: Tensor, contexts: Contexts | None
    ) -> None:
        valid = self._valid[adapter_name]
        reference = entry(self.slim_reference, adapter_name)
        several = reference is not None and reference.dim() == 2
        bucket = None
        if several:
            bucket = torch.zeros_like(routing.cluster) if contexts is None else contexts.bucket
        sums = clusters.sum_tokens(
            routing.z,
            routing.distance,
            routing.cluster,
            valid,
            config.num_clusters,
            None if reference is None or several else config.yield_quantile,
            bucket,
            reference.shape[1] if several else 0,
        )
        tokens = None
        if contexts is not None:
            mean, var = self.slim_token_mean[adapter_name], self.slim_token_var[adapter_name]
            tokens = clusters.sum_about(x, mean, var, valid)
        earlier = self.pending.get(adapter_name)
        if earlier is None:
            counted = self.slim_count[adapter_name].clone()
            pending = PendingSums(self.context.forward_number, sums, counted, tokens)
            self.pending[adapter_name] = pending
            self.context.note_learned(pending.tensors)
        else:  # the same Linear ran twice in one forward
            earlier.add(sums, tokens)

    def _slide_earlier(self, adapter_name: str, learning: bool) -> None:
        """Fold in what an earlier forward saw, now that its backward pass is over."""
        pending = self.pending.get(adapter_name)
        if pending is None:
            return
        running = self.context.forward_number
        if learning and running is not None and pending.forward == running:
            return
        if learning or not pending.folded:
            self.slide_clusters(adapter_name, for_good=learning)

    def slide_clusters(self, adapter_name: str, for_good: bool = False) -> None:
        """Fold the sums of the last training forward into the clusters.

        Data-parallel ranks fold together at their next training forward (`for_good`). A rank that saves or evaluates
        before that folds for itself, and DistributedDataParallel then overwrites its clusters with the first rank's,
        or the other way round. So the sums are kept until then, and folded again only if they are no longer counted.
        """
        pending = self.pending.pop(adapter_name, None)
        if pending is None:
            return
        missing = (self.slim_count[adapter_name] == pending.counted).all()
        momentum = self.slim_config[adapter_name].cluster_momentum
        if pending.tokens is not None:
            mean, var = self.slim_token_mean[adapter_name], self.slim_token_var[adapter_name]
            seen = clusters.ClusterSums(*(tensor * missing for tensor in pending.tokens))
            clusters.slide(mean, var, torch.zeros(1, dtype=torch.int64, device=mean.device), None, seen, momentum)
        clusters.slide(
            self.slim_center[adapter_name],
            self.slim_var[adapter_name],
            self.slim_count[adapter_name],
            entry(self.slim_reference, adapter_name),
            clusters.ClusterSums(*(tensor * missing for tensor in pending.sums)),
            momentum,
        )
        if not for_good and data_parallel.is_shared(self.context.process_group):
            self.pending[adapter_name] = pending._replace(folded=True)
