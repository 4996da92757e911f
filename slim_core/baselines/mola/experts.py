# SPDX-License-Identifier: Apache-2.0
"""MoLA at one Linear: y = Wx + s sum_e w_e B_e A_e x over the K best experts, with more experts in some blocks."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..experts import Experts, Noted, Running, Tensors, router_probabilities, shares
from ..stacked import spread, top_k, weighted_sum
from .config import MolaConfig


class MolaExperts(Experts[MolaConfig]):
    """A router per Linear keeps the best K experts and normalises their weights.

    The authors' code moves its balance loss to the first GPU, so that it cannot be trained elsewhere, and counts
    padding; this does neither.
    """

    prefix = "mola_"
    keys = ("A", "B", "router")
    routing = (
        "in each Linear, a router sends every token to the best of its LoRA experts, of which some blocks have more "
        "than others"
    )

    @property
    def number(self) -> int:
        """Number of experts in this Linear."""
        return self.config.experts_of(self.place.block, self.place.blocks)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        number, r, place = self.number, self.config.r, self.place
        return {
            "A": (number, r, place.c_in),
            "B": (number, place.c_out, r),
            "router": (number, place.c_in),
        }

    def added(self, tensors: Tensors, tokens: Tensor, now: Running) -> Tensor:
        probabilities = router_probabilities(tensors["router"], tokens)
        weights, experts = top_k(probabilities, self.config.top_k)
        if now.note is not None:
            now.note(probabilities)
        x = self.dropped(tokens.to(tensors["A"].dtype), now)
        gates = spread(weights, experts, self.number)
        return self.scale * weighted_sum(x, tensors["A"], tensors["B"], gates)

    def weights(self, probabilities: Tensor) -> Tensor:
        weights = spread(*top_k(probabilities, self.config.top_k), self.number)
        return F.pad(weights, (0, self.routed(self.config) - self.number))

    @classmethod
    def routed(cls, config: MolaConfig) -> int:
        return max(config.num_experts)

    @classmethod
    def wants_losses(cls, config: MolaConfig) -> bool:
        return config.balance_coefficient > 0

    @classmethod
    def losses(
        cls, config: MolaConfig, noted: list[Noted], adapters: Iterable[tuple[Experts, Tensors]]
    ) -> dict[str, Tensor]:
        """Sum over blocks of E sum_e f_e P_e, over the tokens of all Linears of a block together; f sums to 1."""
        blocks: dict[int, list[Tensor]] = {}
        for routed in noted:
            value = shares(routed, config.top_k).to(noted[0].probabilities.device)
            blocks.setdefault(routed.place.block, []).append(value)
        if not blocks:
            return {}
        terms = []
        for values in blocks.values():
            mean = torch.stack(values).mean(0)
            terms.append(mean.shape[-1] * (mean[:-1].mean(0) * mean[-1]).sum())
        return {"balance": config.balance_coefficient * torch.stack(terms).sum()}

    @classmethod
    def blocks(cls, config: MolaConfig) -> int | None:
        return len(config.num_experts)

    @classmethod
    def resolve(cls, config: MolaConfig, blocks: int) -> None:
        if len(config.num_experts) > blocks:
            raise ValueError(
                f"`num_experts` lists {len(config.num_experts)} numbers, but this base has {blocks} blocks; list at "
                "most one for each."
            )
        config.num_experts = [config.experts_of(block, blocks) for block in range(blocks)]
