# SPDX-License-Identifier: Apache-2.0
"""How many prompts are running or queued, and whose."""

from __future__ import annotations

import threading
from collections import Counter


# A quarter more places are for visitors who have none, so that a visitor who takes all places does not block others.
SPARE = 4


class Places:
    """A limited number of places. Any thread may call any method.

    Args:
        limit: how many there are for all.

    Attributes:
        limit: the same.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._lock = threading.Lock()
        self._taken: Counter[str | None] = Counter()

    def take(self, visitor: str | None = None) -> bool:
        """Take a place, if there is one; it must be given back.

        Args:
            visitor: whose it is; None for one who has no other.
        """
        with self._lock:
            first = visitor is None or not self._taken[visitor]
            free = self._taken.total() < self.limit + (self.limit // SPARE if first else 0)
            self._taken[visitor] += free
            return free

    def give_back(self, visitor: str | None = None) -> None:
        """Give a place back."""
        with self._lock:
            self._taken[visitor] -= 1
            # Nothing is kept about visitors who have no place any more.
            self._taken = +self._taken
