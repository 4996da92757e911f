# SPDX-License-Identifier: Apache-2.0
"""Errors that users can fix, as one sentence."""

from __future__ import annotations

import torch


class EngineError(Exception):
    """The message is one sentence for people: what is wrong and what to change."""


def is_failure(error: BaseException) -> bool:
    """Whether an exception is an error, rather than a request to end the thread or generator.

    A panic in a Rust library such as tokenizers is not an `Exception`, and its class has no public name.
    """
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means out of memory. The CPU and MPS have no error class of their own for this."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


def out_of_memory_sentence(device: torch.device, rows: int) -> str:
    """What to change when memory runs out while `rows` answers are being written."""
    place = "The computer's memory" if device.type == "cpu" else f"The memory of {device}"
    fewer = "compare fewer answers at once, " if rows > 1 else ""
    return (
        f"{place} is used up: {fewer}shorten the conversation, ask for a shorter answer, or load the base in 4 bits."
    )
