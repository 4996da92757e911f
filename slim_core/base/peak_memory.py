# SPDX-License-Identifier: Apache-2.0
"""The most memory that something takes."""

from __future__ import annotations

import re
from pathlib import Path

import torch


CLEAR, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def watch_memory(device: torch.device) -> bool:
    """Begin to measure anew.

    Returns:
        Whether it can be measured: on CUDA, and on a CPU under Linux.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        CLEAR.write_text("5", encoding="ascii")  # resets the peak of resident memory
    except OSError:
        return False
    return device.type == "cpu"


def peak_memory(device: torch.device) -> int | None:
    """The most bytes since `watch_memory`: allocated on CUDA, resident of the whole process on a CPU.

    Returns:
        None if the system does not tell.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        match = re.search(r"^VmHWM:\s+(\d+) kB$", STATUS.read_text(encoding="ascii"), re.MULTILINE)
    except OSError:
        return None
    return None if match is None else 1024 * int(match[1])
