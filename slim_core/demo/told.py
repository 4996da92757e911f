# SPDX-License-Identifier: Apache-2.0
"""Questions about the facts with people around them, in the base's own forms.

They teach the base to choose and to judge whatever way something is told. The downstream tasks ask about the same
facts, but in phrasings and in a form that are not used here.
"""

from __future__ import annotations

from random import Random

from .example import Example
from .questions import (
    ANSWERED,
    FRAMES,
    LETTERED,
    NUMBERED,
    SAID,
    SCENES,
    TRAIN_SIZES,
    Style,
    labelled,
    named_labels,
    two_people,
)
from .relations import SPLITS
from .scenes import OBQA, SIQA
from .tables import RELATIONS


# In the order of `OBQA` and `SIQA`.
PHRASINGS: tuple[tuple[str, ...], ...] = (
    (
        "Somebody must {use}. What is useful?",
        "{name} tried to {use}. What was it done with?",
        "Which of these is made to {use}?",
        "If {name} must {use}, what is useful for it?",
        "What did {name} use to {use}?",
        "{name} said: I must {use}. {other} said: Use this. What was it?",
        "{name} can't {use} without this. What is it?",
    ),
    (
        "{name} has to do with {problem}. Who is the right person?",
        "Who knows everything about {problem}?",
        "{name} could do nothing about {problem}. Who came?",
        "Who came to {name} because of {problem}?",
        "Which person helps people with {problem}?",
        "{name} and {other} talked about {problem}. Who will help them?",
        "{name} said: There is {problem}. {other} said: I know who helps. Who is it?",
    ),
    (
        "Find the animal that {trait}.",
        "Which one of the animals {trait}?",
        "{name} likes the animal that {trait}. Which one is it?",
        "{name} said: It {trait}. {other} said: Then I know the animal. Which one is it?",
        "In a book there was an animal that {trait}. What was it called?",
        "What is the animal of {name}, if it {trait}?",
        "The animal {trait}, said {name}. Which one was it?",
    ),
    (
        "Find the thing whose material {trait}.",
        "Which of these things is of a material that {trait}?",
        "{name} likes things of a material that {trait}. Which one is it?",
        "{name} said: The material {trait}. {other} said: Then I know the thing. Which one is it?",
        "In the house there was a thing of a material that {trait}. What was it called?",
        "What is the thing of {name}, if its material {trait}?",
        "The material {trait}, said {name}. Which thing was it?",
    ),
    (
        "Find the food that {trait}.",
        "Which one of the foods {trait}?",
        "{name} likes food that {trait}. Which one is it?",
        "{name} said: It {trait}. {other} said: Then I know the food. Which one is it?",
        "On the table there was food that {trait}. What was it called?",
        "What is the food of {name}, if it {trait}?",
        "The food {trait}, said {name}. Which one was it?",
    ),
    (
        "{name} {did}. What was the feeling?",
        "It was {name} who {did}. How did that feel?",
        "What is the feeling of {name}, who {did}?",
        "{name} said: Yesterday I {did}. {other} asked: How did you feel?",
        "There was a feeling when {name} {did}. Which one?",
        "How was {name} when it was over? {name} {did}.",
    ),
    (
        "{name} {did}. What kind of person is {name}?",
        "It was {name} who {did}. What do we call {name}?",
        "What is {name}, who {did}, like?",
        "{name} said: Yesterday I {did}. {other} thought: What a person! Which word is meant?",
        "There is a word for {name}, who {did}. Which one?",
        "Tell {other} what {name} is like. {name} {did}.",
    ),
    (
        "{name} {did}. What for?",
        "It was {name} who {did}. What for?",
        "For what reason was it {name} who {did}?",
        "{name} said: Yesterday I {did}. {other} asked: Why?",
        "There was a reason when {name} {did}. Which one?",
        "Tell {other} the reason. {name} {did}.",
        "{other} knows why {name} {did}. Why?",
    ),
    (
        "{name} {did}. What comes then?",
        "It was {name} who {did}. What comes next?",
        "What is the next step of {name}, who {did}?",
        "{name} said: Yesterday I {did}. {other} asked: And then?",
        "There was something to do when {name} {did}. What was it?",
        "Tell {other} what comes next. {name} {did}.",
        "First {name} {did}. And after that?",
    ),
)
TOLD = tuple(zip((*OBQA, *SIQA), PHRASINGS, strict=True))
STYLES: dict[Style, int] = {ANSWERED: 4, SAID: 3, NUMBERED: 1, LETTERED: 2}  # with their shares
# Those of the frames and scenes that bring no people of their own.
FORMS = (*(frame.format("{question}", "{options}") for frame in FRAMES), *(s for s in SCENES if "{name}" not in s))
CLAIMS = (
    "{name} says: {claim} Is {name} right?",
    "{name} told {other}: {claim} Is it so?",
    "Did {name} get this right? {claim}",
    "Say yes or no: {claim}",
    "Yes or no, {name} asked. {claim}",
    "{claim} Yes or no?",
)
CLAIMED = tuple(relation for relation in RELATIONS if relation.statement)


def _only_for_training(split: str) -> None:
    if split != "train":
        raise ValueError("what is told is only for training")


def told_choice(split: str, rng: Random) -> Example:
    """A question with options, about somebody. Only for training: every entry and phrasing may come."""
    _only_for_training(split)
    family, phrasings = rng.choice(TOLD)
    row = rng.choice(family.entries[rng.choices(SPLITS, [len(family.entries[name]) for name in SPLITS])[0]])
    size = rng.choices(list(TRAIN_SIZES), list(TRAIN_SIZES.values()))[0]
    wrong = rng.sample(family.wrong(SPLITS, row), size - 1)
    style = rng.choices(list(STYLES), list(STYLES.values()))[0]
    options, answer = labelled(family.option.format(**row), wrong, style, rng)
    prompt = rng.choice(FORMS).format(
        question=rng.choice(phrasings).format(**{**two_people(rng), **row}),
        options=options,
        labels=named_labels(style, size),
    )
    return Example("told_choices", prompt, answer)


def told_claim(split: str, rng: Random) -> Example:
    """A statement that somebody makes, to be judged with one word. Only for training, as above."""
    _only_for_training(split)
    relation = rng.choice(CLAIMED)
    row = rng.choice(relation.facts)
    right = row[relation.answer]
    claimed = right if rng.random() < 0.5 else rng.choice(relation.wrong(right))
    claim = relation.statement.format(**{**row, relation.answer: claimed})
    prompt = rng.choice(CLAIMS).format(claim=claim, **two_people(rng))
    return Example("told_claims", prompt, "yes" if claimed == right else "no")
