# SPDX-License-Identifier: Apache-2.0
"""The queue for the model: first come, first served, and everyone knows their place."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable


class FairQueue:
    """A queue for the model: who may use it now, and who waits. Places belong to tickets, not to threads.

    A generator is often driven by another thread at each step, so a lock that belongs to a thread would not do.

    Attributes:
        changed: notified whenever somebody leaves; also the lock of whoever waits for more than a turn.
    """

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self.changed = threading.Condition()
        self._places: deque[QueuePlace] = deque()
        self._process = os.getpid()

    def join(self) -> QueuePlace:
        """Join the queue at its end. The returned place must be given back with `leave`."""
        if self._process != os.getpid():
            # The parent's callers do not exist in a forked process and could never leave.
            self._start()
        ticket = QueuePlace(self)
        with self.changed:
            self._places.append(ticket)
        return ticket

    def __len__(self) -> int:
        """How many are in line."""
        return len(self._places)


class QueuePlace:
    """A place in a `FairQueue`."""

    def __init__(self, line: FairQueue) -> None:
        self._queue = line

    @property
    def place(self) -> int:
        """How many places are ahead of this one; 0 when it is its turn."""
        with self._queue.changed:
            return self._queue._places.index(self)

    def wait(self, seconds: float | None, ready: Callable[[], bool] = lambda: True) -> bool:
        """Wait for the turn, at most `seconds`; None waits without a limit.

        Args:
            seconds: how long.
            ready: what else has to be so; asked under the lock when somebody has left or `changed` was notified.

        Returns:
            Whether it is this one's turn.
        """
        with self._queue.changed:
            return self._queue.changed.wait_for(lambda: self._queue._places[0] is self and ready(), seconds)

    def leave(self) -> None:
        """Give up the place. Calling it again does nothing."""
        with self._queue.changed:
            if self in self._queue._places:
                self._queue._places.remove(self)
                self._queue.changed.notify_all()
