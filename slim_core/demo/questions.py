# SPDX-License-Identifier: Apache-2.0
"""Questions about the facts: free-form, with options A to D (the shape of MMLU), and yes-no.

A question is held out as a fact with a phrasing: the fact is trained on with its other phrasings, the phrasing with
the other facts. See `relations.held_out`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from random import Random
from typing import NamedTuple

from .example import Example
from .relations import Relation, Row, Word, clashes
from .tables import RELATIONS
from .tables.people import NAMES


LETTERS = "ABCD"
# Ways to label options, and how each is answered. {0} is the label, {1} the option.
Style = tuple[str, str, str]
LETTERED: Style = (LETTERS, "{0}. {1}", "{0}")
SPELLED: Style = (LETTERS, "{0}. {1}", "{0}. {1}")
STYLES: tuple[Style, ...] = (
    ("1234", "{0}. {1}", "{0}. {1}"),
    ("1234", "({0}) {1}", "{0}"),
    ("abcd", "{0}) {1}", "{0}"),
    ("1234", "Option {0}: {1}", "option {0}"),
    ("1234", "{0}: {1}", "number {0}"),
    ("ABCD", "{0}: {1}", "{0}"),
)
# Where the wrong options of a training question come from. Options of another kind, a question that names its option,
# and fewer options are easier: they teach looking at the options at all, before knowing the fact pays off.
TRAIN_POOLS = {"same": 6, "other": 2, "named": 2}
TRAIN_SIZES = {4: 7, 3: 2, 2: 1}
WHICH_SHARE = 0.3
NAMED_QUESTIONS = ("Which option is {right}?", "Which one says {right}?", "Find {right}.", "Pick {right}.")
READ_QUESTIONS = ("What does option {label} say?", "Read option {label}.", "Which words are behind {label}?")
# Ways to put a question with options. {0} is the question, {1} the options.
FRAMES = (
    "{0} {1}",
    "Question: {0} {1}",
    "{0} Choose one: {1}",
    "Which answer is right? {0} {1}",
    "Choose the right answer: {0} {1}",
    "{0} {1} Which one is it?",
)
ANSWERED: Style = ("1234", "Answer{0}: {1}", "answer{0}")
NUMBERED: Style = ("1234", "Answer {0}: {1}", "{0}")
SAID: Style = ("1234", "Answer{0}: {1}", "it is answer{0}")
FRAMED_STYLES: tuple[Style, ...] = (ANSWERED, NUMBERED, SPELLED)
# Ways to put it with people around it, or with the labels named.
SCENES = (
    "{question} {options} Say {labels}.",
    "Read the question: {question} {options} Say one of these: {labels}",
    "{name} asked {other}: {question} {options}",
    "{name} asked a question: {question} {options} What did {other} say? {labels}",
    "What is the answer to the question of {name}? {question} {options} {labels}",
    "{name} needs help with a question: {question} {options} Choose: {labels}",
)
SCENE_STYLES: tuple[Style, ...] = (ANSWERED, NUMBERED, SAID, LETTERED)
READ_STYLES = (STYLES[0], SPELLED)
STATEMENT_CHECKS = ("{} Is that true?", "{} Is that right?", "Yes or no? {}", "Is this right? {}")


class FactQuestion(NamedTuple):
    """A fact with a phrasing: its relation, its row in the table, the template of the text."""

    relation: Relation
    row: Row
    template: str

    @property
    def text(self) -> str:
        return self.template.format(**self.row)

    @property
    def answer(self) -> str:
        return str(self.row[self.relation.answer])


def _questions(split: str, templates: Callable[[Relation], Sequence[str]]) -> tuple[FactQuestion, ...]:
    """Every fact with the phrasings of the split; `templates` gives the phrasings of a relation."""
    return tuple(
        FactQuestion(relation, row, template)
        for relation in RELATIONS
        for row, template in relation.phrased(split, templates(relation))
    )


@cache
def fact_questions(split: str) -> tuple[FactQuestion, ...]:
    """All free-form questions of a split."""
    return _questions(split, lambda relation: relation.questions)


@cache
def _option_questions(split: str) -> tuple[FactQuestion, ...]:
    """The free-form questions that are also asked with options. Answers such as "C" are excluded: they look like
    labels.
    """
    return tuple(q for q in fact_questions(split) if q.relation.options and q.answer not in LETTERS)


@cache
def which_questions(split: str) -> tuple[FactQuestion, ...]:
    """The questions for an entry of a kind, such as "Which of these is a bird?". The row has the right entry."""
    return _questions(split, lambda relation: relation.which)


@cache
def _check_questions(split: str) -> tuple[FactQuestion, ...]:
    """The yes-no questions: the relation's own and those about its statement."""

    def templates(relation: Relation) -> Sequence[str]:
        about_statement = tuple(check.format(relation.statement) for check in STATEMENT_CHECKS)
        return relation.checks + about_statement if relation.checks else ()

    return _questions(split, templates)


@cache
def _all_answers() -> tuple[str, ...]:
    """Every answer of the relations that are asked with options."""
    return tuple(dict.fromkeys(q.answer for q in _option_questions("test")))


def fact(split: str, rng: Random) -> Example:
    """A free-form question."""
    question = rng.choice(fact_questions(split))
    return Example("facts", question.text, question.answer)


def yes_no(split: str, rng: Random) -> Example:
    """A yes-no question, true half of the time. The answer corrects a false one."""
    relation, row, template = rng.choice(_check_questions(split))
    right = row[relation.answer]
    claimed = right if rng.random() < 0.5 else rng.choice(relation.wrong(right))
    text = template.format(**{**row, relation.answer: claimed})
    return Example("yes_no", text, "Yes" if claimed == right else f"No, {right}")


def choice(split: str, rng: Random) -> Example:
    """A question with options, answered by a letter.

    Four options of the same kind, except for easier ones among those for training.
    """
    text, right, wrong = _options(split, rng)
    options, letter = labelled(right, wrong, LETTERED, rng)
    return Example("choices", f"{text} {options}", letter)


def spelled_choice(split: str, rng: Random) -> Example:
    """A question with options, answered by the letter and the option.

    Easier to learn from than a letter alone. But if several answers that it remembers fit the question, a model as
    small as this spells out a different one from the letter's.
    """
    text, right, wrong = _options(split, rng)
    options, answer = labelled(right, wrong, SPELLED, rng)
    return Example("spelled_choices", f"{text} {options}", answer)


def styled_choice(split: str, rng: Random) -> Example:
    """A question whose options have other labels, so that choosing does not depend on A to D."""
    text, right, wrong = _options(split, rng)
    options, answer = labelled(right, wrong, rng.choice(STYLES), rng)
    return Example("styled_choices", f"{text} {options}", answer)


def framed_choice(split: str, rng: Random) -> Example:
    """A question with options and a few words around it, so that choosing does not depend on their position."""
    text, right, wrong = _options(split, rng)
    options, answer = labelled(right, wrong, rng.choice(FRAMED_STYLES), rng)
    return Example("framed_choices", rng.choice(FRAMES).format(text, options), answer)


def scene_choice(split: str, rng: Random) -> Example:
    """A question with options that somebody asks, or that names the labels."""
    text, right, wrong = _options(split, rng)
    style = rng.choice(SCENE_STYLES)
    options, answer = labelled(right, wrong, style, rng)
    people = two_people(rng)
    prompt = rng.choice(SCENES).format(
        question=text, options=options, labels=named_labels(style, 1 + len(wrong)), **people
    )
    return Example("scene_choices", prompt, answer)


def read_option(split: str, rng: Random) -> Example:
    """Asks what the option behind a label says. Teaches copying an option, since most right ones can be answered from
    memory.
    """
    _, right, wrong = _options(split, rng)
    style = rng.choice(READ_STYLES)
    options, answer = labelled(right, wrong, style, rng)
    label = next(label for label in style[0] if answer == style[2].format(label, right))
    return Example("read_options", f"{rng.choice(READ_QUESTIONS).format(label=label)} {options}", answer)


def labelled(right: str, wrong: Iterable[str], style: Style, rng: Random) -> tuple[str, str]:
    """The options in random order behind the labels of a style, and the answer."""
    labels, line, answer = style
    options = [right, *wrong]
    rng.shuffle(options)
    lines = [line.format(label, option) for label, option in zip(labels, options, strict=False)]
    return " ".join(lines), answer.format(labels[options.index(right)], right)


def named_labels(style: Style, size: int) -> str:
    """The labels of `size` options as written in an answer: "answer1/answer2"."""
    labels, _, answer = style
    # The word before the label, if there is one.
    word = answer.split("{0}")[0].split()[-1:]
    return "/".join("".join([*word, label]) for label in labels[:size])


def two_people(rng: Random) -> dict[str, str]:
    """Two different names, as "name" and "other"."""
    name, other = (person["name"] for person in rng.sample(NAMES, 2))
    return {"name": name, "other": other}


def _options(split: str, rng: Random) -> tuple[str, str, list[str]]:
    """A question, its right option, and wrong ones."""
    size, pool = 4, "same"
    if split == "train":
        size = rng.choices(list(TRAIN_SIZES), list(TRAIN_SIZES.values()))[0]
        pool = rng.choices(list(TRAIN_POOLS), list(TRAIN_POOLS.values()))[0]
    if pool == "named":
        right, *wrong = rng.sample(_all_answers(), size)
        return rng.choice(NAMED_QUESTIONS).format(right=right), right, wrong
    if rng.random() < WHICH_SHARE:
        text, right, rivals = _which(split, rng)
        return text, right, rng.sample(rivals, size - 1)
    question = rng.choice(_option_questions(split))
    return question.text, question.answer, _wrong_options(question, size - 1, pool, rng)


def _which(split: str, rng: Random) -> tuple[str, Word, list[Word]]:
    """A question for an entry of a kind, the entry, and the entries of other kinds."""
    question = rng.choice(which_questions(split))
    relation = question.relation
    kinds = relation.wrong(question.answer)
    rivals = [row[relation.entry] for row in relation.facts if row[relation.answer] in kinds]
    return question.text, question.row[relation.entry], rivals


def _wrong_options(question: FactQuestion, n: int, pool: str, rng: Random) -> list[str]:
    """`n` wrong options: other answers of the relation, and of other relations if these are too few."""
    relation, right = question.relation, question.answer
    rivals = [answer for answer in relation.wrong(right) if answer not in LETTERS] if pool == "same" else []
    options: list[str] = rng.sample(rivals, min(n, len(rivals)))
    while len(options) < n:
        other = rng.choice(_all_answers())
        if other not in relation.answers and other not in options and not clashes(relation.clash, right, other):
            options.append(other)
    return options
