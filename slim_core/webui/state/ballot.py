# SPDX-License-Identifier: Apache-2.0
"""A blind vote: which answer is shown as A, B or C, and which one the visitor voted for."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass


LETTERS = "ABCDEFGH"
TIE = "tie"
# Not seeded: the seed of the answers must not reveal the order.
DICE = random.SystemRandom()


@dataclass
class Ballot:
    """The vote on one turn.

    Attributes:
        order: the columns, as they stand on the page from A on.
        best: the column that was voted for, or `TIE`; None before the vote.
    """

    order: tuple[str, ...]
    best: str | None = None

    @property
    def hides(self) -> bool:
        """Whether the names are still hidden."""
        return self.best is None

    def vote(self, choice: object) -> bool:
        """Vote for a letter or for `TIE`; whether it counts."""
        letters = LETTERS[: len(self.order)]
        if not self.hides or not isinstance(choice, str):
            return False
        if choice == TIE:
            self.best = TIE
        elif len(choice) == 1 and choice in letters:
            self.best = self.order[letters.index(choice)]
        return not self.hides


def shuffled(columns: Sequence[str]) -> Ballot | None:
    """A ballot for the answers of these columns; None if there is nothing to choose."""
    if len(columns) < 2:
        return None
    return Ballot(tuple(DICE.sample(list(columns), len(columns))))
