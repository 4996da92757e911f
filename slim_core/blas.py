# SPDX-License-Identifier: Apache-2.0
"""NumPy's products stay in the thread that asks for them."""

from __future__ import annotations

import os
import sys


_VARIABLE = "OPENBLAS_NUM_THREADS"
_in_time = False


def one_thread_for_numpy() -> None:
    """Let NumPy's OpenBLAS use one thread; call this before NumPy is imported.

    It has threads of its own, and a product that they share takes far longer beside torch's: with a LoRA of rank 128
    on a base of the 1B shape, a token took three times as long. `OPENBLAS_NUM_THREADS` takes precedence.
    """
    global _in_time
    _in_time = "numpy" not in sys.modules or _VARIABLE in os.environ
    os.environ.setdefault(_VARIABLE, "1")


def numpy_has_one_thread() -> bool:
    """Whether it is known that NumPy's OpenBLAS uses one thread, because `one_thread_for_numpy` was called in time."""
    return _in_time and os.environ.get(_VARIABLE) == "1"
