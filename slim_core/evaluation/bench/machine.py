# SPDX-License-Identifier: Apache-2.0
"""The machine on which something is measured: what it is, and what it can do at most."""

from __future__ import annotations

import datetime
import os
import platform
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ... import __version__
from .turns import Way, repeated, take_turns


PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate")


@dataclass(frozen=True)
class DeviceLimits:
    """What a device does at most, measured.

    Attributes:
        copy_bandwidth: bytes a second, read and written, of a large copy.
        matrix_rate: floating-point operations a second of a large product.
    """

    copy_bandwidth: float
    matrix_rate: float


def best_device() -> str:
    """CUDA where it is, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def dtype_of(device: str) -> torch.dtype:
    """What a model is measured in there: bfloat16 on a GPU, float32 on a CPU."""
    return torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32


def describe_machine(device: str) -> dict[str, Any]:
    """Date, device and versions, as JSON has them."""
    machine: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": device,
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {"slim-core": __version__, **{name: _version(name) for name in PACKAGES}},
    }
    if torch.device(device).type == "cuda":
        card = torch.cuda.get_device_properties(device)
        machine |= {"card": card.name, "card_bytes": card.total_memory, "cuda": torch.version.cuda}
    return machine


def sentence_of(machine: dict[str, Any]) -> str:
    """The machine in one line."""
    hardware = machine.get("card") or f"{machine['processor']}, {machine['threads']} of {machine['cores']} cores"
    return f"{hardware}; torch {machine['versions']['torch']}; {machine['date']}"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def limits(device: str, dtype: torch.dtype, megabytes: int = 256, size: int = 0) -> DeviceLimits:
    """Measure what the device does at most.

    Args:
        device: which.
        dtype: of the product.
        megabytes: that are copied; more than caches hold.
        size: of the matrices; 0 for one that fits the device.
    """
    size = size or (8192 if torch.device(device).type == "cuda" else 1024)
    source = torch.ones(megabytes * 250_000, device=device)
    target = torch.empty_like(source)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    ways: dict[str, Way] = {
        "copy": repeated(lambda: target.copy_(source), device),
        "product": repeated(lambda: a @ b, device),
    }
    seconds = {
        name: statistics.median(measures["run"] for measures in rounds) for name, rounds in take_turns(ways, 5).items()
    }
    return DeviceLimits(2 * source.nbytes / seconds["copy"], 2 * size**3 / seconds["product"])


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Memory of tensors; one that comes twice counts once."""
    return sum({id(tensor): tensor.nbytes for tensor in tensors}.values())


def read_per_token(model: PreTrainedModel) -> int:
    """Bytes of the weights that every new token needs: all but the embeddings, unless the head is the same tensor."""
    inputs = cast("Tensor", model.get_input_embeddings().weight)
    outputs = model.get_output_embeddings()
    tied = outputs is not None and outputs.weight is inputs
    return bytes_of(model.parameters()) - (0 if tied else inputs.nbytes)
