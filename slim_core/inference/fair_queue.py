# SPDX-License-Identifier: Apache-2.0
"""The line before the model: first come, first served, and everyone knows their place."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager


class FairQueue:
    """Who may use the model now, and who waits. Places are tickets, not threads.

    A generator is often driven by another thread at each step, so a lock that belongs to a thread would not do.
    """

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self._changed = threading.Condition()
        self._places: deque[QueuePlace] = deque()
        self._process = os.getpid()

    def join(self) -> QueuePlace:
        """Get in line at its end. Whoever joins must `leave`."""
        if self._process != os.getpid():
            # In a forked process the callers of the parent are not there, and could never leave.
            self._start()
        ticket = QueuePlace(self)
        with self._changed:
            self._places.append(ticket)
        return ticket

    def join_if_free(self) -> QueuePlace | None:
        """Get in line, if nobody is in it; None if somebody is."""
        ticket = self.join()
        if ticket.place == 0:
            return ticket
        ticket.leave()
        return None

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for the model and have it for the duration of a `with` block."""
        ticket = self.join()
        try:
            ticket.wait(None)
            yield
        finally:
            ticket.leave()


class QueuePlace:
    """A place in a `FairQueue`."""

    def __init__(self, line: FairQueue) -> None:
        self._queue = line

    @property
    def place(self) -> int:
        """How many are before this one; 0 when it is its turn."""
        with self._queue._changed:
            return self._queue._places.index(self)

    def wait(self, seconds: float | None) -> bool:
        """Wait for the turn, at most so long; None waits as long as it takes.

        Returns:
            Whether it is this one's turn.
        """
        with self._queue._changed:
            return self._queue._changed.wait_for(lambda: self._queue._places[0] is self, seconds)

    def leave(self) -> None:
        """Give the place away. A second time does nothing."""
        with self._queue._changed:
            if self in self._queue._places:
                self._queue._places.remove(self)
                self._queue._changed.notify_all()
