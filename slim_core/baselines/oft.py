# SPDX-License-Identifier: Apache-2.0
"""A row of OFT at one Linear: y = W (R x) + b with R of orthogonal blocks. PEFT itself trains it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from peft import OFTConfig
from peft.tuners.oft.layer import OFTLayer, OFTRotationModule
from torch import Tensor, nn

from .experts import Experts, Running, Tensors
from .places import Kind, Place


LARGEST_BLOCK = 1024
MOST_TERMS = 100


class OftExperts(Experts[OFTConfig]):
    """Blocks of the input are rotated before the base's Linear; the tensor is PEFT's, with half a matrix per block."""

    prefix = "oft_"
    keys = ("R.weight",)

    def __init__(self, config: OFTConfig, place: Place) -> None:
        self.config, self.place = config, place

    @property
    def block(self) -> int:
        """Channels per block, chosen like PEFT does if the configured size does not divide the input."""
        size, c_in = self.config.oft_block_size, self.place.c_in
        if c_in % size == 0 and size <= c_in:
            return size
        return OFTLayer.adjust_oft_parameters(cast(OFTLayer, None), c_in, size)  # it uses nothing of the layer

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"R.weight": (self.place.c_in // self.block, self.block * (self.block - 1) // 2)}

    @classmethod
    def size(cls, shapes: Mapping[str, tuple[int, ...]]) -> tuple[Kind, int, int]:
        blocks, numbers = shapes["R.weight"]
        # The larger of the two block sizes that have b (b - 1) / 2 numbers above their diagonal.
        block = round((1 + (1 + 8 * numbers) ** 0.5) / 2)
        return "linear", blocks * block, 0

    @classmethod
    def refused(cls, config: OFTConfig) -> tuple[str, str] | None:
        for field, plain in (("coft", False), ("block_share", False), ("bias", "none"), ("r", 0)):
            if getattr(config, field) != plain:
                return field, f"is {getattr(config, field)!r}; an OFT must be trained with {plain!r} to be a row here"
        size, terms = config.oft_block_size, config.num_cayley_neumann_terms
        if isinstance(size, bool) or not isinstance(size, int) or not 2 <= size <= LARGEST_BLOCK:
            return "oft_block_size", f"is {size!r}; it must be a whole number from 2 to {LARGEST_BLOCK:,}"
        if isinstance(terms, bool) or not isinstance(terms, int) or not 1 <= terms <= MOST_TERMS:
            return "num_cayley_neumann_terms", f"is {terms!r}; it must be a whole number from 1 to {MOST_TERMS}"
        return None

    @classmethod
    def updates(cls, key: str) -> bool:
        return True

    @torch.no_grad()
    def prepared(self, tensors: Tensors) -> Tensors:
        """(blocks, b, b) rotations."""
        weight = tensors["R.weight"].float()
        blocks, numbers = weight.shape
        rotation = OFTRotationModule(
            blocks,
            numbers,
            self.block,
            self.place.c_in,
            use_cayley_neumann=self.config.use_cayley_neumann,
            num_cayley_neumann_terms=self.config.num_cayley_neumann_terms,
        ).to(weight.device)
        return {
            "R": rotation._cayley_batch(
                weight, self.block, self.config.use_cayley_neumann, self.config.num_cayley_neumann_terms
            )
        }

    def forward(self, tensors: Tensors, x: Tensor, output: Tensor | None, module: nn.Module, now: Running) -> Tensor:
        rotations = tensors["R"]
        blocks = x.to(rotations.dtype).unflatten(-1, rotations.shape[:2])
        rotated = torch.einsum("...bi,bij->...bj", blocks, rotations).flatten(-2)
        return now.call(module, rotated.to(x.dtype))
