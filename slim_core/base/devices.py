# SPDX-License-Identifier: Apache-2.0
"""Where a model goes, in which dtype, and how much memory there is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import psutil
import torch

from ..outside.errors import quoted
from .errors import EngineError


# Memory limits of containers: version 2 of control groups, then version 1. Limit, use, and the line of `memory.stat`
# with reclaimable file cache.
CGROUPS = Path("/sys/fs/cgroup")
CGROUP_FILES = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)
# Share of each GPU used for the weights of a model spread over several; the rest is for activations and fragmentation.
SHARE_OF_EACH_GPU = 0.9


def best_device() -> torch.device:
    """A GPU if there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def chosen_device(name: str | torch.device | None) -> torch.device:
    """The named device; the best one for None.

    Raises:
        EngineError: if there is none of that name here.
    """
    if name is None:
        return best_device()
    try:
        device = torch.device(name)
    except RuntimeError:  # torch knows no such name
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise EngineError(
            f"There is no device {quoted(name)}; it must be cpu, cuda, a numbered GPU such as cuda:1, or mps."
        )
    if device.type == "cuda" and not torch.cuda.is_available():
        raise EngineError(f"There is no device {name}: torch finds no CUDA GPU on this machine; choose cpu.")
    if device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
        raise EngineError(f"There is no device {name}: this machine has {count} CUDA GPUs, counted from 0.")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise EngineError("There is no device mps: torch finds no Apple GPU on this machine; choose cpu.")
    return device


def compute_dtype() -> torch.dtype:
    """bfloat16 on GPUs that support it, else float32. Some GPUs only emulate it, slowly."""
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32


def cpu_has_bfloat16() -> bool:
    """Whether this processor multiplies in bfloat16 itself."""
    if not hasattr(torch.cpu, "get_capabilities"):  # older than the function
        return torch.cpu._is_avx512_bf16_supported()
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def answer_dtype(device: torch.device, stored: torch.dtype | None) -> torch.dtype:
    """The dtype a base runs in: bfloat16 if the device supports it, else float32.

    Args:
        device: the device that it runs on.
        stored: the dtype of its files. On a CPU or MPS, a float32 base stays float32: it is small, or made for
            that.
    """
    if device.type == "cuda":
        return compute_dtype()
    if stored not in (torch.bfloat16, torch.float16):
        return torch.float32
    if device.type == "mps":
        return torch.bfloat16 if torch.backends.mps.is_macos_or_newer(14, 0) else torch.float32
    return torch.bfloat16 if cpu_has_bfloat16() else torch.float32


def device_memory(device: torch.device) -> tuple[int | None, int | None]:
    """Free and total bytes of a device; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)
    if device.type == "mps":
        total = torch.mps.recommended_max_memory()
        return total - torch.mps.driver_allocated_memory(), total
    if device.type == "cpu":
        return cpu_memory()
    return None, None


def cpu_memory(cgroups: Path = CGROUPS) -> tuple[int, int]:
    """Free and total bytes of this machine, or of the container that this process runs in."""
    memory = psutil.virtual_memory()
    for limit_file, use_file, stat_file, reclaimable in CGROUP_FILES:
        try:
            limit, use = (int((cgroups / name).read_text()) for name in (limit_file, use_file))
            stat = dict(line.split() for line in (cgroups / stat_file).read_text().splitlines())
            free = limit - use + int(stat.get(reclaimable, 0))
        except (OSError, ValueError):  # no such version, or no limit: "max"
            continue
        return min(memory.available, max(0, free)), min(memory.total, limit)
    return memory.available, memory.total


def all_gpus(released: Mapping[torch.device, int] = MappingProxyType({})) -> dict[int, int]:
    """Bytes that a model spread over all CUDA devices may take on each, by device index.

    Args:
        released: by device, bytes that are in use now and will be free by then.
    """
    gpus = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    free = {gpu: torch.cuda.mem_get_info(gpu)[0] + bytes_on(gpu, released) for gpu in gpus}
    return {gpu.index: int(free_bytes * SHARE_OF_EACH_GPU) for gpu, free_bytes in free.items()}


def bytes_on(device: torch.device, by_device: Mapping[torch.device, int]) -> int:
    """The bytes on one device. A device without an index is the current one of its type."""
    alike = {other.index or 0: size for other, size in by_device.items() if other.type == device.type}
    if not alike:
        return 0
    index = device.index
    if index is None:
        index = torch.cuda.current_device() if device.type == "cuda" else 0
    return alike.get(index, 0)
