# SPDX-License-Identifier: Apache-2.0
"""Faster ways to compute the base's Linears on x86 processors, for float32 without gradients.

PyTorch multiplies in float32 by MKL. A few rows take as long as reading the weight, if it is read once. MKL reads it
once for up to three rows on Intel's processors; for more, and on AMD from two rows on, it takes up to twice as long.
oneDNN, which PyTorch brings along and uses for other types, is faster there, but takes 10 µs to start. On AMD, MKL
is slow for a single row as well. There NumPy's OpenBLAS is the fastest for a few rows of a small weight, one row after
the other: in one thread, it takes less time than MKL in two.
"""

from __future__ import annotations

import logging
import platform
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..blas import numpy_has_one_thread
from ..outside.errors import first_line


log = logging.getLogger(__name__)
# For fewer weights the call of oneDNN costs more than it saves.
WORTH_IT = 2**18
# OpenBLAS multiplies weights of up to this many numbers; each row reads the weight again.
SMALL = 2**20
# The same where PyTorch has several threads and OpenBLAS has one.
SMALL_FOR_ONE_THREAD = 2**18
# Up to this many rows MKL reads a weight once on Intel's processors, and OpenBLAS is the fastest on AMD's.
FEW_ROWS = 3


class CpuLinear(nn.Linear):
    """A Linear that takes the fastest way where no gradient is needed. The result differs only by rounding.

    Attributes:
        row_by_row: up to how many numbers of input OpenBLAS is the fastest; 0 where it never is.
        beside_threads: whether that also holds where PyTorch has several threads.
    """

    row_by_row = 0
    beside_threads = False

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or not x.is_cpu or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        if x.numel() <= self.row_by_row and (self.beside_threads or torch.get_num_threads() == 1):
            # The attributes would be looked up in vain elsewhere first, which takes as long as a short product.
            weight = self._parameters["weight"]
            assert weight is not None
            return _row_by_row(x, weight, self._parameters["bias"])
        size = self.in_features * self.out_features
        if size < WORTH_IT or (x.numel() <= FEW_ROWS * self.in_features and is_intel()):
            return super().forward(x)
        return onednn(x, self.weight, self.bias)


def use_faster_linears(model: nn.Module) -> None:
    """Let float32 Linears of `model` on an x86 processor go the faster ways, where PyTorch has oneDNN."""
    if not has_operator():
        return
    # NumPy has it from 2.2 on.
    openblas = hasattr(np, "matvec") and not is_intel()
    for module in model.modules():
        if type(module) is nn.Linear:
            weight = module.weight
            row_by_row = openblas and weight.numel() <= SMALL
            if weight.is_cpu and weight.dtype == torch.float32 and (row_by_row or weight.numel() >= WORTH_IT):
                module.__class__ = CpuLinear
                assert isinstance(module, CpuLinear)
                module.row_by_row = FEW_ROWS * module.in_features if row_by_row else 0
                # Threads of OpenBLAS would compete with those of PyTorch.
                module.beside_threads = weight.numel() <= SMALL_FOR_ONE_THREAD and numpy_has_one_thread()


@cache
def is_intel() -> bool:
    try:
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux
        return "GenuineIntel" in platform.processor()


@cache
def has_operator() -> bool:
    """Whether this PyTorch multiplies through oneDNN on this processor, in the way that is asked for here.

    Where it should but does not, a warning says so once.
    """
    if platform.machine().lower() not in ("x86_64", "amd64") or not torch.backends.mkldnn.is_available():
        return False
    # The operator is internal to PyTorch: another version may not have it, or with another signature.
    x, weight = torch.linspace(-1, 1, 64).view(2, 1, 32), torch.linspace(1, -2, 512).view(16, 32)
    try:
        with torch.inference_mode():
            if not torch.allclose(onednn(x, weight, None), nn.functional.linear(x, weight), atol=1e-4):
                raise RuntimeError("its products are not the same")
    except (AttributeError, RuntimeError, TypeError) as error:
        sentence = "The base answers more slowly than it could, because oneDNN cannot be called directly: %s"
        log.warning(sentence, first_line(error))
        return False
    return True


def onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _row_by_row(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    result = torch.from_numpy(np.matvec(weight.detach().numpy(), x.detach().numpy()))
    return result if bias is None else result.add_(bias)
