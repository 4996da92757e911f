# SPDX-License-Identifier: Apache-2.0
"""Waiting for what comes: a condition and a deadline, never a time that was enough on some machine."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest


T = TypeVar("T")
# On a machine that is very busy a second may be made longer.
PATIENCE = float(os.environ.get("SLIM_TEST_PATIENCE", "1"))


def until(condition: Callable[[], T], seconds: float = 30) -> T:
    """Ask until the answer is true, and fail the test if it is not by then.

    Returns:
        The answer.
    """
    end = time.monotonic() + seconds * PATIENCE
    while not (answer := condition()):
        if time.monotonic() > end:
            pytest.fail(f"what was waited for did not come within {seconds * PATIENCE:g} seconds")
        time.sleep(0.01)
    return answer


def files_below(folder: Path) -> list[Path]:
    """The files in a folder that a server may be deleting from, which `Path.rglob` fails on."""
    return [Path(where) / name for where, _, names in os.walk(folder) for name in names]
