# SPDX-License-Identifier: Apache-2.0
"""How far beyond the training data a token's context was at the routers so far.

A single Linear is a poor judge: a context that most of them reject is within the reference at some. So each gate
follows the mean excess of its own router and of those that ran before it. The mean belongs to one token in one
forward, so no cache has to store it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Below(NamedTuple):
    """The excesses that earlier routers have found.

    Attributes:
        total: (rows T,) float32 sum of their excesses.
        routers: how many they are.
    """

    total: Tensor
    routers: int

    def mean_with(self, excess: Tensor) -> Tensor:
        """(rows T,) mean excess of these routers and of one more."""
        return (self.total + excess) / (self.routers + 1)


class Excess:
    """The excesses of one adapter's routers in one forward.

    Args:
        batch: B.
        tokens: T.
        device: where the first router is.

    Attributes:
        total: (B, T) float32 sum over the routers so far.
        routers: how many have run.
    """

    def __init__(self, batch: int, tokens: int, device: torch.device) -> None:
        self.total = torch.zeros(batch, tokens, device=device)
        self.routers = 0

    def below(self, rows: slice | Tensor | None, device: torch.device) -> Below:
        """The excesses found for some rows of the batch (None for all), on the asking router's device."""
        total = self.total if rows is None else self.total[rows]
        return Below(total.reshape(-1).to(device), self.routers)

    def add(self, rows: slice | Tensor | None, excess: Tensor) -> None:
        """Add a router's excess, (rows T,), for these rows."""
        excess = excess.detach().to(self.total.device).view(-1, self.total.shape[1])
        if rows is None:
            # Not in place: a forward repeated by a gradient checkpoint needs the earlier value.
            self.total = self.total + excess
        else:
            self.total[rows] += excess
        self.routers += 1
