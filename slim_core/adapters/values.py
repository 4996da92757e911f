# SPDX-License-Identifier: Apache-2.0
"""The numbers in an adapter's file: finite, of a sane size, and not all zero. One tensor is in memory at a time."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from .errors import AdapterError, shown
from .files import WEIGHTS
from .limits import Limits


# Not trained: statistics of activations, which may be larger than any weight, and masks.
STATISTICS = tuple(f".slim_{name}" for name in ("center", "var", "reference", "count", "columns", "rows"))
FIRST = ("lora_A.weight", "slim_A")
SECOND = ("lora_B.weight", "slim_B")


def check_values(path: Path, limits: Limits) -> bool:
    """Check every tensor of a file whose header is checked.

    Returns:
        Whether the adapter changes anything: in at least one Linear neither factor is all zero.

    Raises:
        AdapterError: for a number that is not finite, too large, or negative where none can be.
    """
    nonzero: dict[str, int] = {}
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118
            tensor = file.get_tensor(name)
            if tensor.is_floating_point():
                _check_finite(name, tensor)
                _check_magnitude(name, tensor, limits)
            _check_sign(name, tensor)
            for ending in FIRST + SECOND:
                if name.endswith("." + ending) and tensor.any():
                    module = name.removesuffix(ending)
                    nonzero[module] = nonzero.get(module, 0) + 1
    return any(count == 2 for count in nonzero.values())


def _check_finite(name: str, tensor: Tensor) -> None:
    # Minimum and maximum are NaN if anything is, and need no second tensor.
    if tensor.numel() and not torch.isfinite(torch.stack(tensor.aminmax())).all():
        raise AdapterError(f"{WEIGHTS}: {shown(name, 160)} holds numbers that are not finite (NaN or infinity).")


def _check_magnitude(name: str, tensor: Tensor, limits: Limits) -> None:
    if not tensor.numel() or name.endswith(STATISTICS):
        return
    largest = max(abs(bound.item()) for bound in tensor.aminmax())
    if largest > limits.magnitude:
        raise AdapterError(
            f"{WEIGHTS}: {shown(name, 160)} holds the number {largest:.3g}; no weight may be beyond "
            f"±{limits.magnitude:,.0f}, or answers overflow."
        )


def _check_sign(name: str, tensor: Tensor) -> None:
    if name.endswith((".slim_var", ".slim_count")) and (tensor < 0).any():
        raise AdapterError(f"{WEIGHTS}: {shown(name, 160)} holds a negative number; variances and counts have none.")
