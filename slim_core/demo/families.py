# SPDX-License-Identifier: Apache-2.0
"""What a downstream question is made of: entries of a table, split, with phrasings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .relations import SPLITS, Row, clashes


# The splits of ten entries in a row.
PATTERN = ("test", "train", "train", "validation", "train", "test", "train", "train", "train", "train")
# Where the wrong options of a split come from. Validation has too few entries of its own.
OPTION_SPLITS = {"train": ("train",), "validation": ("train", "validation"), "test": ("test",)}

Split = dict[str, tuple[Row, ...]]


def split_entries(rows: Sequence[Row], kind: str = "") -> Split:
    """The rows of each split. With a column `kind`, every kind is split in the same proportions."""
    split: dict[str, list[Row]] = {name: [] for name in SPLITS}
    seen: dict[str, int] = {}
    for row in rows:
        value = row[kind] if kind else ""
        seen[value] = seen.get(value, -1) + 1
        split[PATTERN[seen[value] % len(PATTERN)]].append(row)
    return {name: tuple(rows) for name, rows in split.items()}


def with_traits(split: Split, traits: Sequence[Row], kind: str) -> Split:
    """Every row together with every trait of its kind."""
    return {
        name: tuple({**row, **trait} for row in rows for trait in traits if row[kind] == trait[kind])
        for name, rows in split.items()
    }


@dataclass(frozen=True)
class ChoiceFamily:
    """Questions with options.

    Attributes:
        entries: what the questions are about.
        option: the template of an option.
        kind: the column that decides what is right: rows with another value there are wrong options.
        phrasings: templates of the question for training and validation.
        test_phrasings: those for test.
        clash: sets of values of `kind` that could pass for one another.
        common: whether the options are common answers, such as feelings, taken from all splits.
    """

    entries: Split
    option: str
    kind: str
    phrasings: tuple[str, ...]
    test_phrasings: tuple[str, ...]
    clash: tuple[frozenset[str], ...] = ()
    common: bool = False

    def wrong(self, splits: Iterable[str], right: Row) -> list[str]:
        """The wrong options for a row, without duplicates, among the entries of the splits."""
        value = right[self.kind]
        rows = (row for name in (SPLITS if self.common else splits) for row in self.entries[name])
        wrong = (row for row in rows if row[self.kind] != value and not clashes(self.clash, value, row[self.kind]))
        return list(dict.fromkeys(self.option.format(**row) for row in wrong))


@dataclass(frozen=True)
class ClaimFamily:
    """Questions whether an entry is of a kind.

    Attributes:
        relation: the name of the relation that knows the kinds.
        entries: what the questions are about.
        phrasings: templates of the question for training and validation.
        test_phrasings: those for test.
    """

    relation: str
    entries: Split
    phrasings: tuple[str, ...]
    test_phrasings: tuple[str, ...]
