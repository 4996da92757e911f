# SPDX-License-Identifier: Apache-2.0
"""DISeL at one Linear: y = Wx + s B (sigmoid(Gx + b) * Ax), a gate for each rank and token."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..experts import Experts, Running, Tensors
from .config import DiselConfig


class DiselExperts(Experts[DiselConfig]):
    """Each rank is a separate expert whose weight is a sigmoid; any number of them may be active for a token."""

    prefix = "disel_"
    keys = ("A", "B", "gate", "gate_bias")
    routing = "every token goes through it, without a router; a gate weights each rank"

    def shapes(self) -> dict[str, tuple[int, ...]]:
        r, place = self.config.r, self.place
        return {"A": (r, place.c_in), "B": (place.c_out, r), "gate": (r, place.c_in), "gate_bias": (r,)}

    def start(self, tensors: Tensors) -> None:
        super().start({key: tensors[key] for key in ("A", "B", "gate")})
        nn.init.constant_(tensors["gate_bias"], self.config.gate_bias)

    def added(self, tensors: Tensors, tokens: Tensor, now: Running) -> Tensor:
        # The gates get the same input as the experts, including dropout, as in the authors' code.
        x = self.dropped(tokens.to(tensors["A"].dtype), now)
        gates = torch.sigmoid(F.linear(x, tensors["gate"], tensors["gate_bias"]))
        return self.scale * F.linear(gates * F.linear(x, tensors["A"]), tensors["B"])
