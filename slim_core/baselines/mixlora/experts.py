# SPDX-License-Identifier: Apache-2.0
"""MixLoRA: each MLP is a mixture of E MLPs that share the base's weights, each with LoRAs of its own; attention has
plain LoRAs. MixLoRA-Dy also drops part of every product."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...method import module_seed
from ..experts import Experts, Noted, Running, Tensors, router_probabilities, shares
from ..places import GATED, Kind, gated_mlps
from ..stacked import chosen, chosen_hidden, side_by_side, spread, top_k, weighted_sum
from .config import MixloraConfig


# Standard deviation of a new router, as in the authors' code.
ROUTER_START = 0.02
PARTS = ("gate", "up", "down")


class MixloraExperts(Experts[MixloraConfig]):
    """On an MLP: E experts on the base's own weights, two active per token; on a Linear: one LoRA.

    With W1, W3, W2 the base's gate, up and down projections, and h_e = act(W1 x + s B1e A1e x) * (W3 x + s B3e A3e x):

        y = sum_e w_e (W2 h_e + s B2e A2e h_e),     w = the K largest of softmax(G x), divided by their sum.

    The base's W2 is linear, so it is multiplied once with the mixed h and not once for each expert. Before anything is
    learned, all h_e are the same, and y is the base's to the bit.
    """

    prefix = "mixlora_"
    keys = ("A", "B", "router", *(f"{part}_{factor}" for part in PARTS for factor in "AB"))
    routing = "in each MLP, a router sends every token to the best of its LoRA experts"
    kinds = ("linear", "mlp")

    def shapes(self) -> dict[str, tuple[int, ...]]:
        number, r, place = self.config.num_experts, self.config.r, self.place
        if place.kind == "linear":
            return {"A": (1, r, place.c_in), "B": (1, place.c_out, r)}
        shapes: dict[str, tuple[int, ...]] = {"router": (number, place.c_in)}
        for part, (c_in, c_out) in self._sizes().items():
            shapes |= {f"{part}_A": (number, r, c_in), f"{part}_B": (number, c_out, r)}
        return shapes

    def _sizes(self) -> dict[str, tuple[int, int]]:
        """(C_in, C_out) of the Linears of an MLP, or of the one Linear, by the beginning of their tensors' names."""
        c_in, c_out = self.place.c_in, self.place.c_out
        if self.place.kind == "linear":
            return {"": (c_in, c_out)}
        return {"gate": (c_in, c_out), "up": (c_in, c_out), "down": (c_out, c_in)}

    def start(self, tensors: Tensors) -> None:
        super().start(tensors)
        if "router" in tensors:
            nn.init.normal_(tensors["router"], std=ROUTER_START)

    @classmethod
    def size(cls, shapes: Mapping[str, tuple[int, ...]]) -> tuple[Kind, int, int]:
        if "router" in shapes:
            return "mlp", shapes["gate_A"][-1], shapes["gate_B"][-2]
        return super().size(shapes)

    # -- numbers -------------------------------------------------------------------------------------------------

    def prepared(self, tensors: Tensors) -> Tensors:
        return self._merged(tensors, learning=False)

    def forward(self, tensors: Tensors, x: Tensor, output: Tensor | None, module: nn.Module, now: Running) -> Tensor:
        if self.place.kind == "linear":
            return super().forward(tensors, x, output, module, now)
        return self._mixture(tensors, x, module, now)

    def added(self, tensors: Tensors, tokens: Tensor, now: Running) -> Tensor:
        factors = self._merged(tensors, now.learning)
        return self._scale * weighted_sum(self.dropped(tokens.to(factors["A"].dtype), now), factors["A"], factors["B"])

    def _mixture(self, tensors: Tensors, x: Tensor, module: nn.Module, now: Running) -> Tensor:
        """(..., C) in and out."""
        tokens = x.reshape(-1, x.shape[-1])
        probabilities = router_probabilities(tensors["router"], tokens)
        weights, experts = top_k(probabilities, self.config.top_k)
        if now.note is not None:
            now.note(probabilities)
        factors = self._merged(tensors, now.learning)
        gate, up, down = (getattr(module, name) for name in GATED)
        dtype, scale = factors["gate_A"].dtype, self._scale
        read = self.dropped(tokens.to(dtype), now)
        of_gate, of_up = now.call(gate, x), now.call(up, x)
        plain = module.act_fn(of_gate) * of_up  # type: ignore[operator]  # a gated MLP has it
        gates, ups = (
            base.reshape(len(tokens), 1, -1)
            + scale * chosen(read, factors[f"{part}_A"], factors[f"{part}_B"], experts)
            for part, base in (("gate", of_gate), ("up", of_up))
        )
        # (T, K, C between): the output of each of the K experts for the token.
        inner = module.act_fn(gates) * ups  # type: ignore[operator]
        weighting = weights.to(inner.dtype).unsqueeze(-1)
        flat = plain.reshape(len(tokens), -1)
        mixed = flat + (weighting * (inner - flat.unsqueeze(1))).sum(1)
        result = now.call(down, mixed.view_as(plain).to(plain.dtype))
        hidden = chosen_hidden(self.dropped(inner.to(dtype), now), factors["down_A"], experts)
        hidden = (hidden * weights.to(dtype).view(*weights.shape, 1, 1)).sum(1).flatten(-2)
        added = scale * F.linear(hidden, side_by_side(factors["down_B"]))
        return (result + added.view_as(result)).to(result.dtype)

    def weights(self, probabilities: Tensor) -> Tensor:
        return spread(*top_k(probabilities, self.config.top_k), self.config.num_experts)

    # -- dynamic merging -----------------------------------------------------------------------------------------

    @property
    def _scale(self) -> float:
        rescaled = self.config.mask_rescale and self.config.mask_rate > 0
        return self.scale / (1 - self.config.mask_rate) if rescaled else self.scale

    def _merged(self, tensors: Tensors, learning: bool) -> Tensors:
        """The factors without dropped rows and columns, which differ in each training step and for each expert."""
        if not self.config.mask_rate:
            return tensors
        generator = None
        if not learning:
            # Drawn on the CPU, so that every device drops the same.
            seed = module_seed(self.config.mask_seed, self.place.name)
            generator = torch.Generator().manual_seed(seed)
        keep = math.sqrt(1 - self.config.mask_rate)
        merged = dict(tensors)
        for part in self._sizes():
            for factor, one_by in (("A", -2), ("B", -1)):
                key = f"{part}_{factor}".lstrip("_")
                shape = list(tensors[key].shape)
                shape[one_by] = 1
                device = tensors[key].device
                drawn = torch.rand(shape, generator=generator, device="cpu" if generator is not None else device)
                merged[key] = tensors[key] * (drawn < keep).to(device)
        return merged

    # -- losses and settings -------------------------------------------------------------------------------------

    @classmethod
    def routed(cls, config: MixloraConfig) -> int:
        return config.num_experts

    @classmethod
    def wants_losses(cls, config: MixloraConfig) -> bool:
        return config.balance_coefficient > 0 or config.l1_coefficient > 0

    @classmethod
    def losses(
        cls, config: MixloraConfig, noted: list[Noted], adapters: Iterable[tuple[Experts, Tensors]]
    ) -> dict[str, Tensor]:
        """Load balance E sum_ke f_ke P_e over the tokens of all MLPs together; L1 over all experts."""
        losses = {}
        if config.balance_coefficient and noted:
            device = noted[0].probabilities.device
            mean = torch.stack([shares(routed, config.top_k).to(device) for routed in noted]).mean(0)
            losses["balance"] = config.balance_coefficient * config.num_experts * (mean[:-1].sum(0) * mean[-1]).sum()
        if config.l1_coefficient:
            terms = [
                len(tensor) * tensor.float().abs().mean()
                for _, tensors in adapters
                for key, tensor in tensors.items()
                if key != "router"
            ]
            losses["l1"] = config.l1_coefficient * torch.stack([t.to(terms[0].device) for t in terms]).sum()
        return losses

    @classmethod
    def default_targets(cls, linears: Mapping[str, tuple[int, int]]) -> set[str] | str:
        mlps = gated_mlps(linears)
        if not mlps:
            raise ValueError(
                "MixLoRA needs gated MLPs, with gate_proj, up_proj and down_proj, and this base has none; choose "
                "another method."
            )
        inside = tuple(f"{name}." for name in mlps)
        others = {name.rpartition(".")[2] for name in linears if not name.startswith(inside)}
        return {name.rpartition(".")[2] for name in mlps} | others
