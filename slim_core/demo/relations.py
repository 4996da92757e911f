# SPDX-License-Identifier: Apache-2.0
"""Tables of facts, and relations: the questions a table answers and which of them are held out."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from string import Formatter


SPLITS = ("train", "validation", "test")
MISSING = "-"


class Word(str):
    """A table entry. In a template `{x:a}` puts the article before it and `{x:c}` starts it with a capital."""

    __slots__ = ()

    def __format__(self, spec: str) -> str:
        text = str(self)
        if "a" in spec:
            text = f"{'an' if text[0].lower() in 'aeiou' else 'a'} {text}"
        if "c" in spec:
            text = text[0].upper() + text[1:]
        return text


Row = dict[str, Word]


def words(text: str) -> tuple[str, ...]:
    """The words of a text."""
    return tuple(text.split())


def table(columns: str, text: str) -> tuple[Row, ...]:
    """Rows of a table written as text: cells are separated by `|`, rows by `;` or a line break, `-` means no entry."""
    names = columns.split()
    lines = [line.strip() for line in text.replace(";", "\n").splitlines() if line.strip()]
    cells = [[Word(cell.strip()) for cell in line.split("|")] for line in lines]
    return tuple(dict(zip(names, row, strict=True)) for row in cells)


def fields(template: str) -> set[str]:
    """The columns that a template reads."""
    return {name for _, name, _, _ in Formatter().parse(template) if name}


def held_out(index: int, phrasings: int) -> dict[str, tuple[int, ...]]:
    """The split of each phrasing of the fact in row `index`: one is for test and one for validation.

    The two rotate with the row, so every phrasing is trained on with other facts of the relation.
    """
    test, validation = index % phrasings, (index + 1) % phrasings
    train = tuple(k for k in range(phrasings) if k not in (test, validation))
    return {"train": train, "validation": (validation,), "test": (test,)}


@dataclass(frozen=True)
class Relation:
    """A relation: what one column of a table says about the others.

    Attributes:
        name: unique name.
        rows: the table.
        answer: the column that is asked for.
        questions: phrasings of the question, at least four.
        statement: the fact as a sentence, for texts about an entry and for yes-no questions.
        checks: phrasings of the yes-no question. Relations without them are never asked that way.
        which: phrasings that ask for an entry with an answer ("Which of these is a bird?"), none or at least four.
        entry: the column whose entries are the options of `which`.
        options: whether the general abilities ask it with options at all.
        clash: sets of answers that could pass for one another, never offered together.
    """

    name: str
    rows: tuple[Row, ...]
    answer: str
    questions: tuple[str, ...]
    statement: str = ""
    checks: tuple[str, ...] = ()
    which: tuple[str, ...] = ()
    entry: str = ""
    options: bool = True
    clash: tuple[frozenset[str], ...] = ()

    @cached_property
    def facts(self) -> tuple[Row, ...]:
        """The rows with an entry in every column that the questions need."""
        needed = {self.answer}.union(*map(fields, self.questions))
        return tuple(row for row in self.rows if all(row[column] != MISSING for column in needed))

    @cached_property
    def answers(self) -> tuple[Word, ...]:
        """The different answers, in the order of the table."""
        return tuple(dict.fromkeys(row[self.answer] for row in self.facts))

    @cached_property
    def key(self) -> tuple[str, ...]:
        """The columns that name the fact."""
        return tuple(sorted(set().union(*map(fields, self.questions)) - {self.answer}))

    def phrased(self, split: str, templates: Sequence[str]) -> Iterator[tuple[Row, str]]:
        """Every fact with every one of the phrasings that belongs to the split for it, as (row, template)."""
        for index, row in enumerate(self.facts):
            for k in held_out(index, len(templates))[split] if templates else ():
                yield row, templates[k]

    def wrong(self, right: str) -> list[Word]:
        """Answers that can be used as wrong options beside the right one."""
        return [answer for answer in self.answers if answer != right and not clashes(self.clash, right, answer)]


def clashes(clash: Collection[frozenset[str]], first: str, second: str) -> bool:
    """Whether the two answers are in the same set of answers that could both be right."""
    return any(first in answers and second in answers for answers in clash)
