# SPDX-License-Identifier: Apache-2.0
"""The numbers in an adapter's file: finite, of plausible size, and not an update of zero. Checked one tensor at a
time.
"""

from __future__ import annotations

from pathlib import Path

import torch
from peft import LoraConfig
from safetensors import safe_open
from torch import Tensor

from ..baselines import Experts, experts_of
from ..method import SlimConfig
from ..outside.errors import AdapterError, quoted
from ..outside.files import WEIGHTS
from ..outside.header import Header
from ..outside.limits import Limits
from .kinds import RowConfig
from .layout import PREFIX, scaling_of
from .parts import MAGNITUDE


# Not trained: statistics of activations, which may be larger than any weight, and masks.
STATISTICS = tuple(
    f".slim_{name}" for name in ("center", "var", "token_mean", "token_var", "reference", "count", "columns", "rows")
)
# Far larger than the square of any activation and than any number of training tokens.
LARGEST_STATISTIC = 1e15
FACTORS = {"lora_A.weight": "lora_B.weight", "slim_A": "slim_B"}


def check_values(path: Path, limits: Limits) -> None:
    """Check every tensor of a file whose header is checked.

    Raises:
        AdapterError: for a number that is not finite, too large, or negative where none can be.
    """
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118
            tensor = file.get_tensor(name)
            if tensor.is_floating_point():
                _check_finite(name, tensor)
                _check_magnitude(name, tensor, limits)
            _check_sign(name, tensor)


def changes(path: Path, config: RowConfig, header: Header) -> bool:
    """Whether the update of any Linear is nonzero: tested with a random input in float32.

    Both factors may hold numbers and yet have no common rank, no common survivors of the masks, or a scale or a
    product that float32 rounds to zero. DoRA magnitudes, or an adapter's own head, embedding or token rows, count as a
    change.
    """
    if (experts := experts_of(config.peft_type)) is not None:
        return _changes_at_all(path, experts, header)
    assert isinstance(config, (LoraConfig, SlimConfig))  # nothing else passes `read_config`
    if any((".lora_" not in name and ".slim_" not in name) or name.endswith(MAGNITUDE) for name in header):
        return True
    with safe_open(path, framework="pt") as file:
        for name in header:
            ending = next((ending for ending in FACTORS if name.endswith(f".{ending}")), None)
            if ending is None:
                continue
            module = name.removesuffix(ending)
            update = _masked(_random(header[name].shape[1]), file, f"{module}slim_columns", header)
            for factor in (name, module + FACTORS[ending]):
                update = file.get_tensor(factor).double() @ update
            update = _masked(update, file, f"{module}slim_rows", header)
            if (update * scaling_of(config, module.removeprefix(PREFIX).removesuffix("."))).float().any():
                return True
    return False


def _changes_at_all(path: Path, experts: type[Experts], header: Header) -> bool:
    """Whether a method of `slim_core.baselines` has an update that is not all zero."""
    with safe_open(path, framework="pt") as file:
        for name in header:
            _, separator, key = name.rpartition(f".{experts.prefix}")
            if not separator or (experts.updates(key) and file.get_tensor(name).any()):
                return True
    return False


def _random(size: int) -> Tensor:
    return torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def _masked(values: Tensor, file: safe_open, name: str, header: Header) -> Tensor:
    """The values after dynamic merging, if the file has its masks."""
    return values * file.get_tensor(name).double() if name in header else values


def _check_finite(name: str, tensor: Tensor) -> None:
    # Minimum and maximum are NaN if anything is, and need no second tensor.
    if tensor.numel() and not torch.isfinite(torch.stack(tensor.aminmax())).all():
        raise AdapterError(f"{WEIGHTS}: {quoted(name, 160)} holds numbers that are not finite (NaN or infinity).")


def _check_magnitude(name: str, tensor: Tensor, limits: Limits) -> None:
    if not tensor.numel() or tensor.dtype == torch.bool:
        return
    statistic = name.endswith(STATISTICS)
    limit = LARGEST_STATISTIC if statistic else limits.magnitude
    largest = max(abs(bound.item()) for bound in tensor.aminmax())
    if largest > limit:
        kind_of_value = "statistic" if statistic else "weight"
        raise AdapterError(
            f"{WEIGHTS}: {quoted(name, 160)} holds the number {largest:.3g}; no {kind_of_value} may be beyond "
            f"±{limit:,.0f}, or answers overflow."
        )


def _check_sign(name: str, tensor: Tensor) -> None:
    if name.endswith((".slim_var", ".slim_token_var", ".slim_count")) and (tensor < 0).any():
        raise AdapterError(
            f"{WEIGHTS}: {quoted(name, 160)} holds a negative number; variances and counts cannot be negative."
        )
