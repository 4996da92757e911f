# SPDX-License-Identifier: Apache-2.0
"""NumPy's products stay in the thread that asks for them."""

from __future__ import annotations

import os


def one_thread_for_numpy() -> None:
    """Let NumPy's OpenBLAS use one thread; call this before NumPy is imported.

    It has threads of its own, and a product that they share takes far longer beside torch's: with a LoRA of rank 128
    on a base of the 1B shape, a token took three times as long. `OPENBLAS_NUM_THREADS` takes precedence.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
