# SPDX-License-Identifier: Apache-2.0
"""Running visitors' work in separate threads, while everybody's prompts are answered."""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable, Iterator

from ..backend import Backend
from ..limits import LimitError
from ..state.background import BackgroundRun, OneRun, R
from .stream import INTERVAL


# Seconds after which a run that found no free place tries again.
PATIENCE = 0.5
# Seconds after which a run is drawn though nothing has changed.
BEAT = 1.0
# The visitor in whose name this work takes places: people who ask something themselves come first.
BACKGROUND = "background"
FAILED = "The model failed. The server's log says why."


class Threads:
    """Threads for one kind of run, limited so that they never take all the places for prompts.

    Args:
        limit: how many may run at once.
        one: what one of them is called, such as "A list".
        several: what several are called, such as "lists".
        doing: what is happening to them, such as "being answered".
    """

    def __init__(self, limit: int, one: str, several: str, doing: str) -> None:
        self._limit, self._one, self._several, self._doing = max(1, limit), one, several, doing
        self._free = threading.BoundedSemaphore(self._limit)

    def start(self, visitor_run: OneRun[R], run: R, follow: Callable[[R], None]) -> None:
        """Start a run; at its end it is marked as ended.

        Args:
            visitor_run: where the run is kept.
            run: the new one.
            follow: does the work.

        Raises:
            LimitError: if the visitor's last run, or too many of others, are going on.
        """
        busy_sentence = f"{self._one} is {self._doing} already. Stop it first, or wait until it is done."
        if visitor_run.running:
            raise LimitError(busy_sentence)
        if not self._free.acquire(blocking=False):
            alone = self._limit == 1
            of_others = (
                f"{self._one} of another visitor is"
                if alone
                else f"{self._limit} {self._several} of other visitors are"
            )
            raise LimitError(f"{of_others} {self._doing}, and no more can be started. Try again in a few minutes.")
        if not visitor_run.begin(run):
            self._free.release()
            raise LimitError(busy_sentence)

        def work() -> None:
            try:
                follow(run)
            finally:
                self._free.release()
                run.end()

        # ZeroGPU time is charged to the visitor, who is known from this thread's context.
        context = contextvars.copy_context()
        threading.Thread(target=context.run, args=(work,), daemon=True).start()


def take_place(backend: Backend, run: BackgroundRun) -> bool:
    """Take a place, waiting for one as long as it takes; False if the run is to end meanwhile.

    It is given back with `backend.leave(BACKGROUND)`.
    """
    while not run.stopping:
        try:
            backend.enter(BACKGROUND)
        except LimitError:
            run.crowded = True
            run.pause(PATIENCE)
            continue
        run.crowded = False
        return True
    return False


def ticks(run: BackgroundRun) -> Iterator[bool]:
    """When to draw: now, whenever something has changed, once in `BEAT` seconds, and once more at the end.

    Closing it (the visitor has left) ends the run; that is possible only between two drawings.

    Returns:
        For each drawing whether more is done.
    """
    drawn: tuple[int, int, bool, bool] | None = None
    due = 0.0
    try:
        while True:
            ended = run.ended.is_set()
            now = (run.done, run.place, run.crowded, run.stopping)
            if now != drawn or ended or time.monotonic() >= due:
                new, drawn, due = drawn is None or now[0] != drawn[0], now, time.monotonic() + BEAT
                yield new or ended
            if ended:
                return
            run.ended.wait(INTERVAL)
    finally:
        if not run.ended.is_set():
            run.stop()
