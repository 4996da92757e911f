# SPDX-License-Identifier: Apache-2.0
"""`compare --blind`: answers under letters in random order, until the best has been chosen."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

import typer
from rich.console import Console
from rich.table import Table

from ..inference import EngineError, RowStep, Variant
from ..webui.state.ballot import LETTERS, TIE, Ballot, shuffled
from .compare_view import answers_view


NO_DIFFERENCE = "-"


class BlindVote:
    """A vote on the answers of some variants.

    Args:
        variants: the variants that answer.

    Raises:
        EngineError: if there is nothing to choose from.
    """

    def __init__(self, variants: Sequence[Variant]) -> None:
        ballot = shuffled([variant.name for variant in variants])
        if ballot is None:
            raise EngineError("--blind has only one answer to choose from; name an adapter with --lora or --slim.")
        self._ballot: Ballot = ballot
        self._variants = {variant.name: variant for variant in variants}
        self.letters = LETTERS[: len(ballot.order)]

    def view(self, rows: Sequence[RowStep]) -> Table:
        """The answers without names, and without numbers that would reveal them."""
        by_variant = {row.variant: row for row in rows}
        covered = [
            replace(self._variants[name], label=letter, detail="")
            for letter, name in zip(self.letters, self._ballot.order, strict=True)
        ]
        return answers_view(covered, [by_variant[name] for name in self._ballot.order], numbers=False)

    def ask(self, console: Console) -> None:
        """Ask the user to choose, if there is a terminal."""
        if not at_terminal():
            return
        question = f"Which answer is the best? {', '.join(self.letters)}, or {NO_DIFFERENCE} for no difference"
        try:
            while self._ballot.hides:
                typed = str(typer.prompt(question)).strip().upper()
                if not self._ballot.vote(TIE if typed == NO_DIFFERENCE else typed):
                    console.print(f"Please type one of {', '.join(self.letters)} or {NO_DIFFERENCE}.", highlight=False)
        except typer.Abort:
            console.print()

    @property
    def sentence(self) -> str:
        """A sentence that reveals the names and the choice."""
        labels = {name: variant.label for name, variant in self._variants.items()}
        pairs = zip(self.letters, self._ballot.order, strict=True)
        revealed = ", ".join(f"{letter} is {labels[name]}" for letter, name in pairs)
        best = self._ballot.best
        if best is None:
            return f"{revealed}."
        return f"You found no difference: {revealed}." if best == TIE else f"You chose {labels[best]}: {revealed}."

    @property
    def record(self) -> dict[str, object]:
        """The same as plain values: names of variants by letter, and the best of them, "tie", or None."""
        return {"order": dict(zip(self.letters, self._ballot.order, strict=True)), "best": self._ballot.best}


def at_terminal() -> bool:
    """Whether standard input and output are a terminal."""
    return sys.stdin is not None and sys.stdin.isatty()
