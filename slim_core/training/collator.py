# SPDX-License-Identifier: Apache-2.0
"""Examples to one batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .encoding import IGNORED, EncodedExample


MULTIPLE = 8  # of the padded length, which tensor cores like


class Collator:
    """Pads on the right, to a multiple of 8.

    Args:
        pad_token_id: id for padding. It is masked, so that any id will do.
    """

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, examples: Sequence[EncodedExample]) -> dict[str, Tensor]:
        """B examples to `input_ids`, `attention_mask` and `labels`, each (B, T) int64."""
        longest = max(len(example.input_ids) for example in examples)
        length = -(-longest // MULTIPLE) * MULTIPLE
        rows = [
            (
                example.input_ids + [self.pad_token_id] * (length - len(example.input_ids)),
                [1] * len(example.input_ids) + [0] * (length - len(example.input_ids)),
                example.labels + [IGNORED] * (length - len(example.labels)),
            )
            for example in examples
        ]
        names = ("input_ids", "attention_mask", "labels")
        return {name: torch.tensor(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}
