# SPDX-License-Identifier: Apache-2.0
"""What the server remembers of a visitor's list of prompts."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from ...inference import Stops
from ...inference.types import Sampling, Variant
from ...many import ListedPrompt, PromptResult, Respondent
from .session import Session


@dataclass
class ListRun:
    """A list of prompts that is being answered or has been.

    Attributes:
        prompts: what is asked.
        askers: the variants that are asked, as the columns were when it began.
        system: for prompts that bring none of their own.
        sampling: how tokens are chosen.
        batched: all answers of a prompt at once, or one after another.
        base: the base's name.
        own_variants: the visitor's adapters among the respondents, by column.
        results: of the prompts that are done.
        place: place in the queue of the prompt that is being asked.
        crowded: whether it waits for one of the places for prompts.
        note: why it ended before all were asked; empty where it did not.
        ended: set when nothing more comes.
    """

    prompts: tuple[ListedPrompt, ...]
    askers: tuple[Respondent, ...]
    system: str
    sampling: Sampling
    batched: bool
    base: str
    own_variants: dict[str, Variant]
    results: list[PromptResult] = field(default_factory=list)
    place: int = 0
    crowded: bool = False
    note: str = ""
    ended: threading.Event = field(default_factory=threading.Event)
    _stopping: threading.Event = field(default_factory=threading.Event)
    _stops: Stops | None = None

    @property
    def stopping(self) -> bool:
        """Whether it was asked to stop."""
        return self._stopping.is_set()

    def stop(self) -> None:
        """Stop it; the prompt that is being answered counts as not asked."""
        self._stopping.set()
        stops = self._stops
        if stops is not None:
            stops.stop_all()

    def pause(self, seconds: float) -> None:
        """Wait, but return at once if it is stopping."""
        self._stopping.wait(seconds)

    def begin(self) -> Stops:
        """Stop flags for the next prompt."""
        stops = self._stops = Stops(len(self.askers))
        if self.stopping:  # it was, just before there were flags
            stops.stop_all()
        return stops

    def as_session(self) -> Session:
        """A session with the adapters of this list, even if the visitor changes the columns meanwhile."""
        session = Session()
        session.own_variants = self.own_variants
        return session


class PromptList:
    """A visitor's list of prompts.

    Attributes:
        file: the name of the uploaded file, and its prompts; None if the box is used.
        run: the latest run; None before the first.
    """

    def __init__(self) -> None:
        self.file: tuple[str, tuple[ListedPrompt, ...]] | None = None
        self.run: ListRun | None = None
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: dict) -> PromptList:
        # Gradio copies a state's first value for each visitor, and a lock cannot be copied.
        return PromptList()

    @property
    def running(self) -> bool:
        """Whether a list is being answered."""
        return self.run is not None and not self.run.ended.is_set()

    def begin(self, run: ListRun) -> bool:
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
