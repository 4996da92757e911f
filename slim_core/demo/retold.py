# SPDX-License-Identifier: Apache-2.0
"""Facts retold: somebody uses, eats, sees or says something, and the question asks for the fact behind it.

The forms are the base's own. These questions teach the base to choose and to judge however a fact is phrased. The
downstream tasks ask about the same facts, but with phrasings and in a form that do not occur here.
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
from .relations import SPLITS, Row
from .scenes import BOOLQ, OBQA, SIQA
from .tables import BY_NAME, RELATIONS


# In the order of `OBQA` and `SIQA`.
PHRASINGS: tuple[tuple[str, ...], ...] = (
    (
        "Somebody must {use}. What is needed?",
        "{name} could {use}. What was it done with?",
        "Which of these is made to {use}?",
        "When {name} must {use}, what is good for it?",
        "What did {name} use to {use}?",
        "{name} said: I must {use}. {other} said: Take this. What was it?",
        "{name} can't {use} without this. What is it?",
    ),
    (
        "{name} has to do with {problem}. Who is the right person?",
        "Who knows everything about {problem}?",
        "{name} could do nothing about {problem}. Who came?",
        "Who came to {name} to do something about {problem}?",
        "Which person helps people with {problem}?",
        "{name} and {other} spoke about {problem}. Who will help them?",
        "{name} said: There is {problem}. {other} said: I know who helps. Who is it?",
    ),
    (
        "Find the animal that {trait}.",
        "Which one of the animals {trait}?",
        "{name} liked the animal that {trait}. Which one was it?",
        "{name} said: It {trait}. {other} said: Then I know the animal. Which one is it?",
        "In a book there was an animal that {trait}. What was it called?",
        "What is the animal of {name}, if it {trait}?",
        "The animal {trait}, said {name}. Which one was it?",
    ),
    (
        "Find the thing with a material that {trait}.",
        "Which of these things is of a material that {trait}?",
        "{name} liked things of a material that {trait}. Which one was it?",
        "{name} said: The material {trait}. {other} said: Then I know the thing. Which one is it?",
        "In the house there was a thing of a material that {trait}. What was it called?",
        "What is the thing of {name}, if its material {trait}?",
        "The material {trait}, said {name}. Which thing was it?",
    ),
    (
        "Find the food that {trait}.",
        "Which one of the foods {trait}?",
        "{name} liked food that {trait}. Which one was it?",
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
        "{name} said: Yesterday I {did}. {other} thought: What a person! Which word was it?",
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
        "{name} said: Yesterday I {did}. {other} asked: What then?",
        "There was something to do when {name} {did}. What was it?",
        "Tell {other} what comes next. {name} {did}.",
        "At first {name} {did}. What after that?",
    ),
)
RETOLD = tuple(zip((*OBQA, *SIQA), PHRASINGS, strict=True))
STYLES: dict[Style, int] = {ANSWERED: 4, SAID: 3, NUMBERED: 1, LETTERED: 2}  # with their shares
# Frames and scenes without people of their own.
FORMS = (*(frame.format("{question}", "{options}") for frame in FRAMES), *(s for s in SCENES if "{name}" not in s))
# Optional introductions without effect on the answer.
BEFORE = (
    "It was a cold day.",
    "It was in the evening.",
    "This was long before today.",
    "{other} was not there.",
    "{other} came later.",
    "{name} and {other} are friends.",
    "{other} was in the city.",
    "It was a warm day.",
    "It was in the morning.",
    "{other} knows about it.",
)
BEFORE_SHARE = 0.4
# When somebody did something, which changes nothing either.
WHEN = (
    "last month",
    "on Monday",
    "in the morning",
    "this year",
    "in the summer",
    "before lunch",
    "after dinner",
    "at night",
    "today",
    "in the holidays",
)
WHEN_SHARE = 0.4
CLAIMS = (
    "{name} says: {claim} Is {name} right?",
    "{name} told {other}: {claim} Did {name} know it?",
    "Did {name} get this right? {claim}",
    "Say yes or no: {claim}",
    "Yes or no, {name} asked. {claim}",
    "{claim} Yes or no?",
)
# In the order of `BOOLQ`.
CLAIM_PHRASINGS: tuple[tuple[str, ...], ...] = (
    (
        "{name} liked {animal:a}. Did {name} like {kind:a}?",
        "{name} wanted {animal:a}. Did {name} want {kind:a}?",
        "{name} knows {animal:a}. Does {name} know {kind:a}?",
        "{name} drew {animal:a}. {other} says: You drew {kind:a}. Is {other} right?",
        "When it is {animal:a}, must it be {kind:a}?",
        "In a book there is {animal:a}. Is there {kind:a} in the book?",
        "{name} and {other} met {animal:a}. Did they meet {kind:a}?",
        "{name} asked if {animal:a} is {kind:a}.",
        "The animal of {name} is {animal:a}. So {name} has {kind:a}. Is that right?",
    ),
    (
        "{name} liked {food}. Did {name} like a kind of {kind}?",
        "{name} wanted {food}. Did {name} want a kind of {kind}?",
        "{name} knows {food}. Does {name} know a kind of {kind}?",
        "{name} ate {food}. {other} says: You ate a kind of {kind}. Is {other} right?",
        "When it is {food}, must it be a kind of {kind}?",
        "On the table there is {food}. Is there a kind of {kind} on the table?",
        "{name} and {other} found {food}. Did they find a kind of {kind}?",
        "{name} asked if {food} is a kind of {kind}.",
        "The food of {name} is {food}. So it is a kind of {kind}. Is that right?",
    ),
    (
        "{name} lives in {country}. Does {name} live in {continent}?",
        "{name} comes from {country}. Does {name} come from {continent}?",
        "{name} worked in {country}. {other} says: You worked in {continent}. Is {other} right?",
        "When it is in {country}, must it be in {continent}?",
        "A book is about {country}. Is it about a country in {continent}?",
        "{name} and {other} met in {country}. Did they meet in {continent}?",
        "{name} asked if {country} is in {continent}.",
        "The home of {name} is in {country}. So it is in {continent}. Is that right?",
    ),
    (
        "{name} liked {thing}. Did {name} like something made of {material}?",
        "{name} wanted {thing}. Did {name} want something made of {material}?",
        "{name} knows {thing}. Does {name} know something made of {material}?",
        "{name} broke {thing}. {other} says: You broke something made of {material}. Is {other} right?",
        "When it is {thing}, must it be made of {material}?",
        "On the table there is {thing}. Is there something made of {material} on the table?",
        "{name} and {other} found {thing}. Did they find something made of {material}?",
        "{name} asked if {thing} is made of {material}.",
        "This is {thing}. So the material is {material}. Is that right?",
    ),
    (
        "The mother of {name} is {job:a}. Does she work in {place:a}?",
        "{name} is {job:a}. {other} says: You work in {place:a}. Is {other} right?",
        "When it is {job:a}, must the work be in {place:a}?",
        "A book is about {job:a}. Is it about somebody who works in {place:a}?",
        "{name} and {other} met {job:a} at work. Did they meet in {place:a}?",
        "{name} asked if {job:a} works in {place:a}.",
        "{name} works as {job:a}. So {name} works in {place:a}. Is that right?",
    ),
)
RETOLD_CLAIMS = tuple(zip(BOOLQ, CLAIM_PHRASINGS, strict=True))
# Ways to ask for one word, and the words.
JUDGED = {
    "Say yes or no: {}": ("yes", "no"),
    "Yes or no? {}": ("yes", "no"),
    "{} Yes or no?": ("yes", "no"),
    "Say if it is true or false: {}": ("true", "false"),
    "{} Say true or false.": ("true", "false"),
}
CLAIMED = tuple(relation for relation in RELATIONS if relation.statement)


def _only_for_training(split: str) -> None:
    if split != "train":
        raise ValueError("retold facts are only for training")


def _filled(phrasing: str, row: Row, rng: Random) -> str:
    if rng.random() < BEFORE_SHARE:
        phrasing = f"{rng.choice(BEFORE)} {phrasing}"
    if rng.random() < WHEN_SHARE:
        phrasing = phrasing.replace("{did}", f"{{did}} {rng.choice(WHEN)}")
    return phrasing.format(**{**two_people(rng), **row})


def retold_choice(split: str, rng: Random) -> Example:
    """A question with options about what somebody does. Only for training: it may use every entry and phrasing."""
    _only_for_training(split)
    family, phrasings = rng.choice(RETOLD)
    row = rng.choice(family.entries[rng.choices(SPLITS, [len(family.entries[name]) for name in SPLITS])[0]])
    size = rng.choices(list(TRAIN_SIZES), list(TRAIN_SIZES.values()))[0]
    wrong = rng.sample(family.wrong(SPLITS, row), size - 1)
    style = rng.choices(list(STYLES), list(STYLES.values()))[0]
    options, answer = labelled(family.option.format(**row), wrong, style, rng)
    prompt = rng.choice(FORMS).format(
        question=_filled(rng.choice(phrasings), row, rng),
        options=options,
        labels=named_labels(style, size),
    )
    return Example("told_choices", prompt, answer)


def retold_claim(split: str, rng: Random) -> Example:
    """A statement that somebody makes, to be judged in one word. Only for training."""
    _only_for_training(split)
    relation = rng.choice(CLAIMED)
    row = rng.choice(relation.facts)
    right = row[relation.answer]
    claimed = right if rng.random() < 0.5 else rng.choice(relation.wrong(right))
    claim = relation.statement.format(**{**row, relation.answer: claimed})
    prompt = rng.choice(CLAIMS).format(claim=claim, **two_people(rng))
    return Example("told_claims", prompt, "yes" if claimed == right else "no")


def retold_question(split: str, rng: Random) -> Example:
    """A question about something that somebody uses, eats or sees, to be answered in one word. Only for training."""
    _only_for_training(split)
    family, phrasings = rng.choice(RETOLD_CLAIMS)
    relation = BY_NAME[family.relation]
    row = rng.choice(relation.facts)
    right = row[relation.answer]
    truth = rng.random() < 0.5
    claimed = right if truth else rng.choice(relation.wrong(right))
    form, (yes, no) = rng.choice(list(JUDGED.items()))
    question = _filled(rng.choice(phrasings), {**row, relation.answer: claimed}, rng)
    return Example("told_questions", form.format(question), yes if truth else no)
