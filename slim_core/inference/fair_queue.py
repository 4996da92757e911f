# SPDX-License-Identifier: Apache-2.0
"""The queue for the model: visitors take turns, and everyone knows their place."""

from __future__ import annotations

import os
import threading
from bisect import insort
from collections.abc import Callable, Hashable


class FairQueue:
    """A queue for the model: who may use it now, and who waits. A place belongs to whoever joined, not to a thread:
    a generator is often driven by another thread at each step.

    Each visitor has one place in a round, and rounds follow each other: a visitor's second prompt waits behind every
    other visitor's first. Within a round it is first come, first served.

    Attributes:
        changed: notified when somebody leaves; also the lock for callers that wait for room after their turn has come.
    """

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self.changed = threading.Condition()
        self._places: list[QueuePlace] = []
        # The round of the latest turn, and for each visitor the round of their latest place.
        self._round = 0
        self._rounds: dict[Hashable, int] = {}
        self._number = 0
        self._process = os.getpid()

    def join(self, visitor: Hashable = None) -> QueuePlace:
        """Join the queue. The returned place must be given back with `leave`.

        Args:
            visitor: whose place it is; None for somebody who has no other place.
        """
        if self._process != os.getpid():
            # The parent's callers do not exist in a forked process and could never leave.
            self._start()
        with self.changed:
            number = self._round
            if visitor is not None:
                self._rounds[visitor] = number = max(number, self._rounds.get(visitor, -1) + 1)
            self._number += 1
            place = QueuePlace(self, (number, self._number))
            insort(self._places, place, key=lambda place: place.order)
        return place

    def _served(self, place: QueuePlace) -> None:
        """A place has had its turn: its round is now the latest."""
        if place.order[0] > self._round:
            self._round = place.order[0]
            self._rounds = {visitor: last for visitor, last in self._rounds.items() if last >= self._round}

    def __len__(self) -> int:
        """How many places are in the queue."""
        return len(self._places)


class QueuePlace:
    """A place in a `FairQueue`.

    Attributes:
        order: the round, and a number that is smaller for earlier places of the same round.
    """

    def __init__(self, queue: FairQueue, order: tuple[int, int]) -> None:
        self._queue, self.order = queue, order

    @property
    def ahead(self) -> int:
        """How many places are ahead of this one; 0 when it is its turn."""
        with self._queue.changed:
            return self._queue._places.index(self)

    def wait(self, seconds: float | None, ready: Callable[[], bool] = lambda: True) -> bool:
        """Wait for the turn.

        Args:
            seconds: the longest time to wait; None for any.
            ready: another condition, checked under the lock when somebody has left or `changed` was notified.

        Returns:
            Whether its turn has come.
        """
        with self._queue.changed:
            has_turn = self._queue.changed.wait_for(lambda: self._queue._places[0] is self and ready(), seconds)
            if has_turn:
                self._queue._served(self)
            return has_turn

    def leave(self) -> None:
        """Give up the place. Calling it again does nothing."""
        with self._queue.changed:
            if self in self._queue._places:
                self._queue._places.remove(self)
                self._queue.changed.notify_all()
