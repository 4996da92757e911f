# SPDX-License-Identifier: Apache-2.0
"""Work for one visitor that runs in a thread while the page shows its progress."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from ...inference.types import Variant
from .session import Session


@dataclass(kw_only=True)
class BackgroundRun:
    """A list of prompts or an evaluation, running or ended.

    Attributes:
        base: the base's name.
        own_variants: the visitor's adapters that take part, by column.
        place: place in the queue of what is being asked.
        crowded: whether it waits for a free place for prompts.
        note: why it ended early; empty if it did not.
        ended: set when it has ended.
    """

    base: str
    own_variants: dict[str, Variant]
    place: int = 0
    crowded: bool = False
    note: str = ""
    ended: threading.Event = field(default_factory=threading.Event)
    _stopping: threading.Event = field(default_factory=threading.Event)

    @property
    def done(self) -> int:
        """How many prompts or questions are done."""
        raise NotImplementedError

    @property
    def stopping(self) -> bool:
        """Whether it was asked to stop."""
        return self._stopping.is_set()

    def stop(self) -> None:
        """Stop it; a prompt that is being answered counts as not asked."""
        self._stopping.set()

    def pause(self, seconds: float) -> None:
        """Wait, but return at once if it is stopping."""
        self._stopping.wait(seconds)

    def end(self) -> None:
        """Mark it as ended."""
        self.place, self.crowded = 0, False
        self.ended.set()

    def as_session(self) -> Session:
        """A session with the adapters of this run, even if the visitor changes the columns meanwhile."""
        session = Session()
        session.own_variants = self.own_variants
        return session


R = TypeVar("R", bound=BackgroundRun)


class OneRun(Generic[R]):
    """A visitor's run of one kind: at most one at a time.

    Attributes:
        run: the latest; None before the first.
    """

    def __init__(self) -> None:
        self.run: R | None = None
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: dict) -> OneRun[R]:
        # Gradio copies a state's first value for each visitor, and a lock cannot be copied.
        return type(self)()

    @property
    def running(self) -> bool:
        """Whether it is being worked on."""
        return self.run is not None and not self.run.ended.is_set()

    def begin(self, run: R) -> bool:
        """Replace the last run; False while it is still running."""
        with self._lock:
            if self.running:
                return False
            self.run = run
            return True

    def leave(self) -> None:
        """The visitor has left."""
        if self.run is not None:
            self.run.stop()
