# SPDX-License-Identifier: Apache-2.0
"""How often a visitor's prompt may be read while it is typed: one reading at a time, with pauses between them."""

from __future__ import annotations

import threading
import time


# A reading is followed by a pause this many times as long, so that one visitor keeps a quarter of the model at most.
PAUSE = 3
# No reading may take longer than this, judging by the speed of the last one.
MOST_SECONDS = 1.0
# Its speed is unknown at first, so the first reading is short.
FIRST_TOKENS = 256
# A reading of fewer tokens than this says little of how long more of them take.
FEW_TOKENS = 64
MOST_TOKENS = 2048


class Meter:
    """Limits how often the meter reads one visitor's prompt."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reading = False
        self._free_at = 0.0
        self._seconds_per_token: float | None = None

    def begin(self) -> bool:
        """Begin a reading; False during another one and the pause after it. Call `end` afterwards."""
        with self._lock:
            if self._reading or time.monotonic() < self._free_at:
                return False
            self._reading = True
            return True

    def fits(self, tokens: int) -> bool:
        """Whether a prompt is short enough for the meter."""
        if self._seconds_per_token is None:
            return tokens <= FIRST_TOKENS
        if tokens > MOST_TOKENS:
            return False
        if tokens * self._seconds_per_token <= MOST_SECONDS:
            return True
        # The machine may have been busy during the last reading, so its speed does not count for ever.
        self._seconds_per_token /= 2
        return False

    def end(self, tokens: int = 0, seconds: float = 0.0) -> None:
        """Give it back.

        Args:
            tokens: how many were read; 0 if there was no reading.
            seconds: how long it took.
        """
        with self._lock:
            self._reading = False
            if tokens:
                self._free_at = time.monotonic() + PAUSE * seconds
                self._seconds_per_token = seconds / max(tokens, FEW_TOKENS)
