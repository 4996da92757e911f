# SPDX-License-Identifier: Apache-2.0
"""The order in which examples are trained on."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import torch
from transformers.trainer_pt_utils import LengthGroupedSampler


class GroupedByLength(LengthGroupedSampler):
    """A sampler that groups examples of similar length, in an order that depends only on seed and epoch.

    The one in transformers yields long examples first and short ones last, 50 steps at a time; clusters, which move
    with every step, would follow. It also draws from the global generator, so that a resumed run sees another order.

    Args:
        step: how many examples an optimiser step has.
        lengths: of the examples, in tokens.
        seed: of the order.
    """

    def __init__(self, step: int, lengths: list[int], seed: int) -> None:
        super().__init__(step, lengths=lengths)
        self._seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate at the beginning of each epoch."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.generator = torch.Generator().manual_seed(self._seed + self._epoch)
        examples, step = list(super().__iter__()), self.batch_size
        full = len(examples) // step
        begins = [*(torch.randperm(full, generator=self.generator) * step).tolist(), full * step]
        return chain.from_iterable(examples[begin : begin + step] for begin in begins)
