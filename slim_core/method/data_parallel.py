# SPDX-License-Identifier: Apache-2.0
"""Sums and first values that data-parallel ranks agree on. With a single process, nothing happens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def is_shared(group: dist.ProcessGroup | None) -> bool:
    """Whether there are other ranks.

    Args:
        group: the ranks that share the data; None for all.
    """
    return dist.is_available() and dist.is_initialized() and dist.get_world_size(group) > 1


def add_up(tensors: Sequence[Tensor], group: dist.ProcessGroup | None) -> None:
    """Add each tensor up over the ranks, in place. On every device they travel as one."""
    if not is_shared(group):
        return
    for device in dict.fromkeys(tensor.device for tensor in tensors):
        local = [tensor for tensor in tensors if tensor.device == device]
        flat = torch.cat([tensor.reshape(-1) for tensor in local])
        dist.all_reduce(flat, group=group)
        for tensor, total in zip(local, flat.split([tensor.numel() for tensor in local]), strict=True):
            tensor.copy_(total.view_as(tensor))


def share_first(tensors: Sequence[Tensor], group: dist.ProcessGroup | None) -> None:
    """Give every rank the values of the group's first rank, in place."""
    if is_shared(group):
        for tensor in tensors:
            dist.broadcast(tensor, group=group, group_src=0)
