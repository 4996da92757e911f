# SPDX-License-Identifier: Apache-2.0
"""What the server remembers of a visitor's list of prompts."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...inference import Stops
from ...inference.types import Sampling
from ...many import ListedPrompt, PromptResult, Respondent
from .background import BackgroundRun, OneRun


@dataclass(kw_only=True)
class ListRun(BackgroundRun):
    """A list of prompts that is being answered or has been.

    Attributes:
        prompts: what is asked.
        askers: the variants that are asked, as the columns were when it began.
        system: for prompts that bring none of their own.
        sampling: how tokens are chosen.
        batched: all answers of a prompt at once, or one after another.
        results: of the prompts that are done.
    """

    prompts: tuple[ListedPrompt, ...]
    askers: tuple[Respondent, ...]
    system: str
    sampling: Sampling
    batched: bool
    results: list[PromptResult] = field(default_factory=list)
    _stops: Stops | None = None

    @property
    def done(self) -> int:
        """How many prompts are done."""
        return len(self.results)

    def stop(self) -> None:
        """Stop it; the prompt that is being answered counts as not asked."""
        super().stop()
        stops = self._stops
        if stops is not None:
            stops.stop_all()

    def begin(self) -> Stops:
        """Stop flags for the next prompt."""
        stops = self._stops = Stops(len(self.askers))
        if self.stopping:  # stopped before these flags existed
            stops.stop_all()
        return stops


class PromptList(OneRun[ListRun]):
    """A visitor's list of prompts.

    Attributes:
        file: the name of the uploaded file, and its prompts; None if the box is used.
    """

    def __init__(self) -> None:
        super().__init__()
        self.file: tuple[str, tuple[ListedPrompt, ...]] | None = None
