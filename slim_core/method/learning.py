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

from . import clusters, merging
from .config import SlimConfig
from .context import ForwardContext
from .routing import Routing


class PendingSums(NamedTuple):
    """Sums for the clusters.

    Attributes:
        forward: the training forward that made them.
        sums: over its tokens.
        counted: (N,) what the clusters had counted before it, by which one sees whether the sums are in them.
        folded: whether they are, as far as this rank knows.
    """

    forward: int | None
    sums: clusters.ClusterSums
    counted: Tensor
    folded: bool = False


def entry(container: nn.ParameterDict | BufferDict, adapter_name: str) -> Tensor | None:
    """The tensor of an adapter, or None."""
    # PEFT's BufferDict has no `get`.
    return container[adapter_name] if adapter_name in container else None  # noqa: SIM401


class ClusterLearner:
    """The part of a SLIM layer that moves its clusters. Containers are keyed by adapter name."""

    context: ForwardContext
    module_name: str
    slim_config: dict[str, SlimConfig]
    slim_center: BufferDict
    slim_var: BufferDict
    slim_count: BufferDict
    slim_reference: BufferDict
    pending: dict[str, PendingSums]
    # Which tokens of the last training forward are no padding; None if every token counts.
    _valid: dict[str, Tensor | None]
    # Whether there are first centres.
    _started: dict[str, bool]

    def _prepare_to_learn(self, adapter_name: str, x: Tensor) -> None:
        mask = self.context.mask
        # Kept for the forward that gradient checkpointing repeats when the mask is gone.
        fits = mask is not None and mask.numel() == len(x)
        self._valid[adapter_name] = mask.to(x.device) if fits else None
        # Asked for at every training forward, read from the device once.
        if not self._started.get(adapter_name):
            self._started[adapter_name] = self._start_clusters(adapter_name, x)

    def _start_clusters(self, adapter_name: str, x: Tensor) -> bool:
        """Take the first centres from these tokens, if there are none yet. Whether there are centres now."""
        config = self.slim_config[adapter_name]
        if config.cluster_init == "random" or self.slim_count[adapter_name].any():
            return True
        # A generator of its own: a forward that draws from torch's cannot be repeated exactly by a checkpoint.
        generator = torch.Generator().manual_seed(merging.module_seed(config.mask_seed, self.module_name))
        first = clusters.first_clusters(x.detach(), self._valid[adapter_name], config.num_clusters, generator)
        started = torch.tensor(first is not None, device=x.device)
        center, var = self.slim_center[adapter_name], self.slim_var[adapter_name]
        if first is not None:
            center.copy_(first[0])
            var.copy_(first[1])
        self.context.share_first_clusters([center, var, started])
        return bool(started)

    @torch.no_grad()
    def _learn_from(self, adapter_name: str, config: SlimConfig, routing: Routing) -> None:
        sums = clusters.sum_tokens(
            routing.z,
            routing.distance,
            routing.cluster,
            self._valid[adapter_name],
            config.num_clusters,
            config.yield_quantile if config.yield_mode == "calibrated" else None,
        )
        earlier = self.pending.get(adapter_name)
        if earlier is None:
            self.pending[adapter_name] = PendingSums(
                self.context.forward_number, sums, self.slim_count[adapter_name].clone()
            )
            self.context.note_learned(self, adapter_name)
        else:  # the same Linear ran twice in one forward
            self.pending[adapter_name] = earlier._replace(sums=earlier.sums.plus(sums))

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
        clusters.slide(
            self.slim_center[adapter_name],
            self.slim_var[adapter_name],
            self.slim_count[adapter_name],
            entry(self.slim_reference, adapter_name),
            clusters.ClusterSums(*(tensor * missing for tensor in pending.sums)),
            self.slim_config[adapter_name].cluster_momentum,
        )
        if not for_good and self.context.distributed:
            self.pending[adapter_name] = pending._replace(folded=True)
