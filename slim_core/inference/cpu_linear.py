# SPDX-License-Identifier: Apache-2.0
"""The base's large Linears through oneDNN on x86 processors.

PyTorch multiplies in float32 by MKL. A few rows take as long as reading the weight, if it is read once. MKL reads it
once for up to three rows on Intel's processors; for more, and on AMD from two rows on, it takes up to twice as long.
oneDNN, which PyTorch brings along and uses for other types, is faster there.
"""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn


# For fewer weights the call itself costs more than it saves.
WORTH_IT = 2**18
# Up to this many rows MKL reads a weight once on Intel's processors.
FEW_ROWS = 3


class OneDnnLinear(nn.Linear):
    """A Linear that uses oneDNN when no gradient is needed. The result differs only by rounding."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or not x.is_cpu or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        if x.numel() <= FEW_ROWS * self.in_features and _is_intel():
            return super().forward(x)
        return _onednn(x, self.weight, self.bias)


def use_onednn(model: nn.Module) -> None:
    """Let large float32 Linears of `model` on an x86 processor go through oneDNN, where PyTorch has it."""
    if not has_operator():
        return
    for module in model.modules():
        if type(module) is nn.Linear:
            weight = module.weight
            if weight.is_cpu and weight.dtype == torch.float32 and weight.numel() >= WORTH_IT:
                module.__class__ = OneDnnLinear


@cache
def _is_intel() -> bool:
    try:
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux
        return "GenuineIntel" in platform.processor()


@cache
def has_operator() -> bool:
    """Whether this PyTorch multiplies through oneDNN on this processor, in the way that is asked for here."""
    if platform.machine().lower() not in ("x86_64", "amd64") or not torch.backends.mkldnn.is_available():
        return False
    # The operator is internal to PyTorch: another version may not have it, or with another signature.
    x, weight = torch.linspace(-1, 1, 64).view(2, 1, 32), torch.linspace(1, -2, 512).view(16, 32)
    try:
        with torch.inference_mode():
            return torch.allclose(_onednn(x, weight, None), nn.functional.linear(x, weight), atol=1e-4)
    except (AttributeError, RuntimeError, TypeError):
        return False


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
