# SPDX-License-Identifier: Apache-2.0
"""The engine's queue, for those who stand in it in tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from slim_core.inference.fair_queue import FairQueue


@contextmanager
def turn(line: FairQueue) -> Iterator[None]:
    """Wait for the turn, and keep it for the duration of a `with` block."""
    place = line.join()
    try:
        place.wait(None)
        yield
    finally:
        place.leave()
