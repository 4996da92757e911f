# SPDX-License-Identifier: Apache-2.0
"""Weights of the base in the order in which oneDNN reads them, for float32 on AMD's processors.

For several rows oneDNN rearranges a plain weight at every product, which takes as long as reading it twice. A weight
that is rearranged once is read at close to the memory's speed, for one row as for three. The plain weight is released,
so that the base takes no more memory than before.
"""

from __future__ import annotations

import logging
from collections import Counter
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cpu_linear import WORTH_IT, CpuLinear, has_operator, is_intel, onednn


log = logging.getLogger(__name__)
# For one row, oneDNN would leave a weight as it is; for all other numbers of rows it chooses the same order.
ROWS = 3


class PackedLinear(nn.Linear):
    """A Linear with a packed weight. The result differs from the plain one only by rounding.

    Attributes:
        weight: a parameter of the usual shape, dtype and device, whose numbers only `to_dense` gives.
    """

    def forward(self, x: Tensor) -> Tensor:
        # The attributes would be looked up in vain elsewhere first.
        weight, bias = self._parameters["weight"], self._parameters["bias"]
        assert weight is not None
        if torch.is_grad_enabled() or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
            return F.linear(x, weight.to_dense(), bias)
        return onednn(x, weight, bias)


def pack_linears(model: nn.Module) -> None:
    """Pack the large float32 Linears of a model, which must be nobody else's and is not trained any more.

    On Intel's processors all stay as they are, since MKL reads plain weights at full speed there. So does a weight
    that two modules share: an embedding needs its plain rows. A warning says so where packing is not possible.
    """
    if is_intel() or not has_operator():
        return
    weights = [weight for module in model.modules() if (weight := module._parameters.get("weight")) is not None]
    uses = Counter(map(id, weights))
    del weights
    modules = [module for module in model.modules() if _is_worth_it(module) and uses[id(module.weight)] == 1]
    if not modules or not _works():
        return
    for module in modules:
        assert isinstance(module, nn.Linear)
        try:
            packed = _packed(module.weight)
        except RuntimeError as error:
            log.warning("The base answers more slowly than it could, because its weights cannot be packed: %s", error)
            return
        module._parameters["weight"] = nn.Parameter(packed, requires_grad=False)
        module.__class__ = PackedLinear
    # What was read from a file is a part of the file's pages, which stay in memory until no tensor needs them.
    for tensor in (*model.parameters(), *model.buffers()):
        if not tensor.is_mkldnn:
            tensor.data = tensor.data.clone()


def _is_worth_it(module: nn.Module) -> bool:
    if type(module) not in (nn.Linear, CpuLinear):
        return False
    weight = module._parameters["weight"]
    assert weight is not None
    return weight.is_cpu and weight.dtype == torch.float32 and weight.numel() >= WORTH_IT


@cache
def _works() -> bool:
    """Whether this PyTorch packs weights in the way that is asked for here; a warning says if not."""
    # The operators are internal to PyTorch: another version may not have them, or with another signature.
    x, weight = torch.linspace(-1, 1, 96).view(3, 1, 32), torch.linspace(1, -2, 512).view(16, 32)
    try:
        with torch.inference_mode():
            packed = _packed(weight)
            if not torch.equal(packed.to_dense(), weight):
                raise RuntimeError("packed numbers are not the same")
            if not torch.allclose(onednn(x, packed, None), F.linear(x, weight), atol=1e-4):
                raise RuntimeError("products of packed numbers are not the same")
    except (AttributeError, RuntimeError, TypeError) as error:
        log.warning("The base answers more slowly than it could, because its weights cannot be packed: %s", error)
        return False
    return True


def _packed(weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS)
