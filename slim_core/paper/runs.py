# SPDX-License-Identifier: Apache-2.0
"""What a table of the paper consists of: contenders, and cells that are trained and measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..base.errors import EngineError
from ..demo.trial import Setup


# The set of training examples that is used where nothing else is said: all downstream tasks together.
MIXED = "mixed"


class PaperError(EngineError):
    """A table cannot be made; the message says why, for people."""


@dataclass(frozen=True)
class Finish:
    """What is done to a trained adapter to get another one, without training.

    Attributes:
        method: of `slim_core.baselines.METHODS`, whose `finish` does it.
        options: of that method.
    """

    method: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Contender:
    """A row of a table.

    Attributes:
        name: for files and the command line, unique in the table.
        title: for people.
        setup: how it is trained. Contenders with the same setup share the training.
        finish: what is done to the trained adapter.
        strength: of the gate while it answers; None as trained.
        data: the set of training examples.
        learns: what that set is about, in words; empty if it is the usual one, or the title says it.
        after: the contender from whose adapter its training goes on; None for a new adapter.
        steps: optimiser steps; None for the usual number.
        scored_as: the set whose tasks it is measured on; None for `data`.
        paper: mean score in % in the paper by kind, "downstream" and "general".
        line: the method on whose line it lies in the plane of learning and forgetting; its own title if empty.
    """

    name: str
    title: str
    setup: Setup
    finish: Finish | None = None
    strength: float | None = None
    data: str = MIXED
    steps: int | None = None
    scored_as: str | None = None
    paper: Mapping[str, float] = field(default_factory=dict)
    after: Contender | None = None
    line: str = ""
    learns: str = ""

    @property
    def on_line(self) -> str:
        """The method on whose line it lies."""
        return self.line or self.title

    @property
    def part(self) -> str:
        """The set whose tasks it is measured on."""
        return self.scored_as or self.data


@dataclass(frozen=True)
class Cell:
    """A contender at one learning rate from one seed."""

    contender: Contender
    rate: float
    seed: int

    @property
    def earlier(self) -> Cell | None:
        """The cell from whose adapter its training goes on."""
        return None if self.contender.after is None else replace(self, contender=self.contender.after)

    @property
    def words(self) -> str:
        """Its name for people."""
        learns = f" on {self.contender.learns}" if self.contender.learns else ""
        return f"{self.contender.title}{learns} at {self.rate:g}, seed {self.seed}"


@dataclass(frozen=True)
class Experiment:
    """A table of the paper, or a figure.

    Attributes:
        name: of the command.
        title: what it shows.
        contenders: its rows.
        note: a sentence about how to read it.
        rival: the contender that all others are compared with, beside the base.
    """

    name: str
    title: str
    contenders: tuple[Contender, ...]
    note: str = ""
    rival: str = "lora"

    def only(self, names: Sequence[str]) -> Experiment:
        """The experiment with these contenders alone, in its own order.

        Raises:
            PaperError: if it has no such contender.
        """
        known = [contender.name for contender in self.contenders]
        for name in names:
            if name not in known:
                raise PaperError(f"{self.name} has no {name!r}; there are {', '.join(known)}.")
        chosen = tuple(c for c in self.contenders if not names or c.name in names)
        return Experiment(self.name, self.title, chosen, self.note, self.rival)

    def cells(self, rates: Iterable[float], seeds: Iterable[int]) -> list[Cell]:
        """Every contender at every rate from every seed, seed by seed: a table is whole before it gets spreads."""
        return [Cell(c, rate, seed) for seed in seeds for rate in rates for c in self.contenders]
