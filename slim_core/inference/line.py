# SPDX-License-Identifier: Apache-2.0
"""The line before the model: first come, first served, and everyone knows their place."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager


class Line:
    """Who may use the model now, and who waits. Places are tickets, not threads.

    A generator is often driven by another thread at each step, so a lock that belongs to a thread would not do.
    """

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self._changed = threading.Condition()
        self._tickets: deque[Ticket] = deque()
        self._process = os.getpid()

    def join(self) -> Ticket:
        """Get in line at its end. Whoever joins must `leave`."""
        if self._process != os.getpid():
            # In a forked process the callers of the parent are not there, and could never leave.
            self._start()
        ticket = Ticket(self)
        with self._changed:
            self._tickets.append(ticket)
        return ticket

    def join_if_free(self) -> Ticket | None:
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


class Ticket:
    """A place in a `Line`."""

    def __init__(self, line: Line) -> None:
        self._line = line

    @property
    def place(self) -> int:
        """How many are before this one; 0 when it is its turn."""
        with self._line._changed:
            return self._line._tickets.index(self)

    def wait(self, seconds: float | None) -> bool:
        """Wait for the turn, at most so long; None waits as long as it takes.

        Returns:
            Whether it is this one's turn.
        """
        with self._line._changed:
            return self._line._changed.wait_for(lambda: self._line._tickets[0] is self, seconds)

    def leave(self) -> None:
        """Give the place away. A second time does nothing."""
        with self._line._changed:
            if self in self._line._tickets:
                self._line._tickets.remove(self)
                self._line._changed.notify_all()
