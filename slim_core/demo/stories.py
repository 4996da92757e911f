# SPDX-License-Identifier: Apache-2.0
"""Short texts in which the base meets the words of the downstream tasks, without their form or their questions."""

from __future__ import annotations

from functools import cache
from random import Random

from .example import Example
from .relations import Row
from .tables import RELATIONS
from .tables.people import NAMES
from .tables.social import FEELINGS, NEXT, REASONS, TRAITS


SOCIAL_SENTENCES: tuple[tuple[str, tuple[Row, ...]], ...] = (
    ("{name} {did}. {name} felt {feeling} afterwards.", FEELINGS),
    ("Yesterday {name} {did}. So {name} was {feeling}.", FEELINGS),
    ("{name} {did}. {other} would describe {name} as {trait}.", TRAITS),
    ("{name} {did}. This is {trait}, said {other}.", TRAITS),
    ("{name} {did} {reason}.", REASONS),
    ("{name} {did}. {he:c} wanted {reason}.", REASONS),
    ("{name} {did}. Then {name} wanted to {next}.", NEXT),
    ("When {name} {did}, {other} told {name} to {next}.", NEXT),
)
# The words of the downstream form and of its questions, in other sentences.
PLAIN_SENTENCES = (
    "{name} gave the correct answer to the question.",
    "{name} asked {other} to choose a seat. Please choose, said {other}.",
    "{name} could answer the following question.",
    "What {name} said is true. What {other} said is false.",
    "{name} and {other} played a question/answer game.",
    "{name} took a true/false test with a pen.",
    "{name} liked the format of the book. {other} liked the answer format of the test.",
    "{name} read a book with {other}. Answer me, said {other}.",
    "{other} was away while {name} was in the garden.",
    "{name} saw {other} again and told {other} everything about the day.",
    "{name} wondered which of the things was best.",
    "{name} could take only one thing along. It should help, said {other}.",
    "{name} looked for something that would do. {other} had an idea.",
    "{name} pointed at a picture in a book about nature.",
    "{name} had some food for lunch. {other} did not eat.",
    "Because {name} wants to learn, {name} asks {other} about it.",
    "{name} most likely knows it, thought {other}. It must count as a good guess.",
)
STORY_PROMPTS = ("Tell me a story about {name} and {other}.", "Tell a story about {name}.", "What did {name} do?")
ABOUT_PROMPTS = ("Tell me about {}.", "What do you know about {}?", "Say something about {}.")


@cache
def _statements() -> tuple[tuple[str, str], ...]:
    """Every fact of a relation with a statement, as (first column of its row, sentence)."""
    pairs = []
    for relation in RELATIONS:
        if relation.statement:
            pairs += [(next(iter(row.values())), relation.statement.format(**row)) for row in relation.facts]
    return tuple(pairs)


def _about(rng: Random) -> tuple[str, str]:
    """All statements about one entry of the tables, at most three."""
    entry, _ = rng.choice(_statements())
    sentences = [sentence for subject, sentence in _statements() if subject == entry]
    sentences_told = rng.sample(sentences, min(3, len(sentences)))
    return rng.choice(ABOUT_PROMPTS).format(entry), " ".join(sentences_told)


def _story(rng: Random) -> tuple[str, str]:
    """Three things that happen to two people."""
    first, second = rng.sample(NAMES, 2)
    people = {"name": first["name"], "he": first["he"], "other": second["name"]}
    sentences = []
    for _ in range(2):
        template, rows = rng.choice(SOCIAL_SENTENCES)
        sentences.append(template.format(**people, **rng.choice(rows)))
    sentences.insert(rng.randint(0, 2), rng.choice(PLAIN_SENTENCES).format(**people))
    return rng.choice(STORY_PROMPTS).format(**people), " ".join(sentences)


def sample(split: str, rng: Random) -> Example:
    """A story, or facts about an entry. Only for training, since there is more than one right answer."""
    if split != "train":
        raise ValueError("stories are only for training")
    prompt, answer = (_story if rng.random() < 0.7 else _about)(rng)
    return Example("stories", prompt, answer)
