# SPDX-License-Identifier: Apache-2.0
"""Conversations of several turns: questions of every kind after one another, and some that refer to the one before."""

from __future__ import annotations

from collections import defaultdict
from functools import cache
from random import Random
from string import Formatter

from .example import Example
from .questions import FactQuestion, fact_questions
from .recipe import Phase
from .world import general_examples


Conversation = list[Example]
# Columns whose entry a follow-up question replaces: "What is the capital of France?" "And of Spain?"
FOLLOWED = {
    *("country", "capital", "city", "landmark", "book", "element", "animal", "food", "product", "item", "tool"),
    *("thing", "job", "word", "day", "month", "one", "verb"),
}
FOLLOW_UPS = ("And {}?", "What about {}?", "And what about {}?", "How about {}?")
COUNTED = {"animal", "job"}  # named with an article where nothing stands before them
PREPOSITIONS = ("of", "in", "for")
LONGEST_RUN = 3  # turns about one fact


@cache
def _followed(split: str) -> tuple[tuple[FactQuestion, ...], ...]:
    """The questions of a split that differ only in their entry, for each phrasing."""
    by_template: dict[tuple[str, str], list[FactQuestion]] = defaultdict(list)
    for question in fact_questions(split):
        relation, _, template = question
        if len(relation.key) == 1 and relation.key[0] in FOLLOWED:
            by_template[relation.name, template].append(question)
    return tuple(tuple(questions) for questions in by_template.values() if len(questions) >= LONGEST_RUN)


def _follow_up(question: FactQuestion, rng: Random) -> Example:
    """A follow-up to the same question about another entry."""
    before, _, spec, _ = next(part for part in Formatter().parse(question.template) if part[1])
    column = question.relation.key[0]
    entry = format(question.row[column], "a" if column in COUNTED else (spec or "").replace("c", ""))
    *_, word = before.split() or [""]
    forms = FOLLOW_UPS + ((f"And {word} {{}}?",) * 2 if word in PREPOSITIONS else ())
    return Example("follow_ups", rng.choice(forms).format(entry), question.answer)


def follow_ups(split: str, rng: Random, turns: int) -> Conversation:
    """A fact question, followed by the same question about other entries; those turns give only the entry's name.

    Args:
        split: "train", "validation" or "test": every turn stands for a question of the split.
        rng: the source of randomness.
        turns: how many, up to `LONGEST_RUN`.
    """
    first, *others = rng.sample(rng.choice(_followed(split)), turns)
    return [Example("facts", first.text, first.answer), *(_follow_up(question, rng) for question in others)]


def conversations(seed: int, n: int, phase: Phase) -> list[Conversation]:
    """`n` training conversations with the lengths and tasks of a phase, reproducible by seed."""
    rng = Random(f"conversations {seed}")
    lengths = rng.choices(range(1, len(phase.turns) + 1), phase.turns, k=n)
    turns = iter(general_examples("train", seed, sum(lengths), weights=phase.weights))
    lists = [[next(turns) for _ in range(length)] for length in lengths]
    for conversation in lists:
        at = 1
        while at < len(conversation):
            if rng.random() >= phase.follow_ups:
                at += 1
                continue
            # The question it refers to becomes the previous turn.
            run = min(rng.randint(2, LONGEST_RUN), len(conversation) - at + 1)
            conversation[at - 1 : at - 1 + run] = follow_ups("train", rng, run)
            at += run
    return lists
