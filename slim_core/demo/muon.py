# SPDX-License-Identifier: Apache-2.0
"""Muon in float32. PyTorch's own multiplies in bfloat16, which most CPUs emulate: many times slower."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor


COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
MOMENTUM = 0.95
EPSILON = 1e-7


def orthogonalised(matrix: Tensor) -> Tensor:
    """(M, N), nearly the closest matrix with singular values of 1, by Newton and Schulz's iteration."""
    a, b, c = COEFFICIENTS
    wide = matrix.T if matrix.size(0) > matrix.size(1) else matrix
    wide = wide / wide.norm().clamp(min=EPSILON)
    for _ in range(ITERATIONS):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide.T if matrix.size(0) > matrix.size(1) else wide


class Muon(torch.optim.Optimizer):
    """As `torch.optim.Muon` with Nesterov's momentum and `adjust_lr_fn="match_rms_adamw"`.

    Args:
        params: matrices.
        lr: the rate; an update has the root mean square of one of AdamW's at that rate.
        weight_decay: share of a weight that a step takes off, times the rate.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # without a closure, which nobody here has
        for group in self.param_groups:
            for parameter in group["params"]:
                momentum = self.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))
                momentum.lerp_(parameter.grad, 1 - MOMENTUM)
                update = orthogonalised(parameter.grad.lerp(momentum, MOMENTUM))
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update, alpha=-0.2 * math.sqrt(max(parameter.shape)) * group["lr"])
