# SPDX-License-Identifier: Apache-2.0
"""Memory that a long-running server has freed goes back to the system."""

from __future__ import annotations

import ctypes
import os
import platform


_M_ARENA_MAX = -8  # malloc.h
ARENAS = 2


def limit_arenas() -> bool:
    """Let glibc's malloc keep at most two arenas.

    By default it opens up to eight for each core, one for each thread, and memory that was freed in an arena stays
    there. Requests run on many threads: with 64 clients of the demo, the app held twice as much without this limit
    (`tests/experiments/load.py`, with `MALLOC_ARENA_MAX=16` and without). Arenas that exist stay: call this before
    threads start. `MALLOC_ARENA_MAX` takes precedence.

    Returns:
        Whether a limit was set. Other C libraries have none to set.
    """
    if "MALLOC_ARENA_MAX" in os.environ or platform.libc_ver()[0] != "glibc":
        return False
    return bool(ctypes.CDLL(None).mallopt(_M_ARENA_MAX, ARENAS))
