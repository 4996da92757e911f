# SPDX-License-Identifier: Apache-2.0
"""LoRAMoE at one Linear: y = Wx + s sum_e g_e B_e A_e x with g = softmax(Gx), and its localised balancing loss."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..experts import Experts, Noted, Running, Tensors, router_probabilities
from ..layer import ExpertsLayer
from ..places import mlp_linears
from ..stacked import weighted_sum
from .config import LoramoeConfig


class LoramoeExperts(Experts[LoramoeConfig]):
    """All experts are active for every token, weighted by a router per Linear; by default on the Linears of MLPs.

    The authors' code counts padding into the balance and cannot switch an adapter off; this does neither.
    """

    prefix = "loramoe_"
    keys = ("A", "B", "router")
    routing = "in each of its Linears, a router weights all LoRA experts for every token"

    def shapes(self) -> dict[str, tuple[int, ...]]:
        number, r, place = self.config.num_experts, self.config.r, self.place
        return {
            "A": (number, r, place.c_in),
            "B": (number, place.c_out, r),
            "router": (number, place.c_in),
        }

    def added(self, tensors: Tensors, tokens: Tensor, now: Running) -> Tensor:
        gates = router_probabilities(tensors["router"], tokens)
        if now.note is not None:
            now.note(gates)
        x = self.dropped(tokens.to(tensors["A"].dtype), now)
        return self.scale * weighted_sum(x, tensors["A"], tensors["B"], gates)

    @classmethod
    def routed(cls, config: LoramoeConfig) -> int:
        return config.num_experts

    @classmethod
    def wants_losses(cls, config: LoramoeConfig) -> bool:
        return config.balance_coefficient > 0

    @classmethod
    def losses(
        cls, config: LoramoeConfig, noted: list[Noted], adapters: Iterable[tuple[Experts, Tensors]]
    ) -> dict[str, Tensor]:
        if not noted:
            return {}
        device = noted[0].probabilities.device
        terms = [uneven(routed, config.balance_offset).to(device) for routed in noted]
        return {"balance": config.balance_coefficient * torch.stack(terms).sum()}

    @classmethod
    def default_targets(cls, linears: Mapping[str, tuple[int, int]]) -> set[str] | str:
        targets = mlp_linears(linears)
        if not targets:
            raise ValueError("LoRAMoE adapts the Linears of MLPs, and this base has none that are recognised.")
        return targets


def uneven(noted: Noted, offset: float) -> Tensor:
    """The localised balancing loss of one Linear: Var(Q * I) / Mean(Q * I)^2 over samples and experts.

    Q is the sum of the gates over the tokens of a sample. I is 1 + offset for the experts of the sample's own kind,
    the first half of them for samples of kind 1 and the second for those of kind 0, and 1 - offset for the others; 1
    if no types are set. As in the authors' code the mean is squared; the paper divides by the mean itself.

    Args:
        noted: the gates, what is padding, how many sequences the tokens are, and of which kinds.
        offset: delta.

    Returns:
        () float32.
    """
    gates = noted.probabilities
    if noted.valid is not None and len(noted.valid) == len(gates):
        gates = torch.where(noted.valid.unsqueeze(-1), gates, 0)
    batch = noted.batch if noted.batch and len(gates) % noted.batch == 0 else 1
    used = gates.view(batch, -1, gates.shape[-1]).sum(1)
    if noted.types is not None:
        first = torch.arange(gates.shape[-1], device=gates.device) < gates.shape[-1] // 2
        own_kind = (noted.types.to(gates.device).view(-1, 1) == 1) == first
        used = used * torch.where(own_kind, 1 + offset, 1 - offset)
    return used.var() / (used.mean() ** 2 + 1e-10)


@contextmanager
def sample_types(model: nn.Module, types: Tensor) -> Iterator[None]:
    """Within this context, the samples of training forwards have these types.

    Args:
        model: with LoRAMoE adapters.
        types: (B,) 1 for samples of world knowledge, 0 for all others.

    Raises:
        ValueError: if the model has no LoRAMoE adapter.
    """
    notes = next((m.notes for m in model.modules() if isinstance(m, ExpertsLayer)), None)
    if notes is None:
        raise ValueError("The model has no LoRAMoE adapter, so sample types have no effect.")
    notes.types = types
    try:
        yield
    finally:
        notes.types = None
