# SPDX-License-Identifier: Apache-2.0
"""What the base learns, the downstream tasks, the texts for the tokenizer, and what counts as a right answer."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from random import Random

from . import questions, retold, stories, sums, talk
from .downstream import DOWNSTREAM_TASKS, downstream_examples
from .example import Example, Sampler, draw


# The abilities of the base, and what else it is trained on: texts with all words of the world, and other ways to ask
# with options. The names are stored with the demo, in build.json.
ABILITIES: dict[str, Sampler] = {
    "sums": sums.sample,
    "facts": questions.fact,
    "choices": questions.choice,
    "yes_no": questions.yes_no,
    "talk": talk.sample,
}
EXPOSURE: dict[str, Sampler] = {
    "stories": stories.sample,
    "spelled_choices": questions.spelled_choice,
    "styled_choices": questions.styled_choice,
    "framed_choices": questions.framed_choice,
    "scene_choices": questions.scene_choice,
    "read_options": questions.read_option,
    "told_choices": retold.retold_choice,
    "told_claims": retold.retold_claim,
    "told_questions": retold.retold_question,
}
GENERAL_TASKS = tuple(ABILITIES)
EVEN = dict.fromkeys(GENERAL_TASKS, 1)
# Share of the training questions written carelessly: in lower case, half of them without the final mark.
CARELESS = 0.15
# Examples of each task that the tokenizer learns from.
TEXTS = {"sums": 4000, "choices": 3000, "yes_no": 3000, "talk": 3000, "stories": 8000} | dict.fromkeys(
    ("styled_choices", "framed_choices", "read_options"), 500
)


def _careless(example: Example, rng: Random) -> Example:
    """The example as a visitor might type it."""
    prompt = example.prompt.lower()
    return replace(example, prompt=prompt.rstrip("?. ") if rng.random() < 0.5 else prompt)


def general_examples(
    split: str, seed: int, n: int, task: str | None = None, weights: dict[str, int] = EVEN
) -> list[Example]:
    """Examples of the general abilities.

    Args:
        split: "train", "validation" or "test".
        seed: the same seed gives the same examples.
        n: how many.
        task: one of `GENERAL_TASKS`, or of `EXPOSURE` for training; None for a mixture.
        weights: the shares of the mixture.

    Returns:
        Training examples as they come, repetitions included; distinct ones for validation and test.
    """
    rng = Random(f"{task} {split} {seed}")
    samplers = ABILITIES | EXPOSURE

    def sample(split: str, rng: Random) -> Example:
        chosen = task or rng.choices(list(weights), list(weights.values()))[0]
        example = samplers[chosen](split, rng)
        careless = split == "train" and chosen in ("sums", "facts") and rng.random() < CARELESS
        return _careless(example, rng) if careless else example

    return draw(sample, split, rng, n, distinct=split != "train")


def world_text() -> Iterator[str]:
    """Texts with every word that the vocabulary needs, taken only from what the base is trained on.

    Messages that the base refuses are left out, so that their odd words are read byte by byte, as a visitor's will be.
    """
    for question in questions.fact_questions("train"):
        yield from (question.text, question.text.lower(), question.answer)
    for task, n in TEXTS.items():
        for example in general_examples("train", 0, n, task):
            if example.answer != talk.REFUSAL:
                yield from (example.prompt, example.answer)
    yield talk.REFUSAL


def _normalised(text: str) -> str:
    return " ".join(text.lower().split()).rstrip(".!")


def check(example: Example, text: str) -> bool:
    """Whether a generated text is a right answer.

    Word problems are judged by their final number, downstream tasks by the first option that is named, and everything
    else by the whole text except case, spaces and the final mark.
    """
    if example.task in DOWNSTREAM_TASKS:
        option = re.compile(r"answer\d|true|false")
    elif example.task == "sums":
        option = re.compile(r"\b\d+\b(?!.*\b\d+\b)", re.DOTALL)
    else:
        return _normalised(text) == _normalised(example.answer)
    match = option.search(text)
    if match is None:
        return False
    right = option.search(example.answer)
    assert right is not None  # every answer of these tasks names one
    return match[0] == right[0]


def _prompts() -> dict[str, tuple[Example, ...]]:
    """A few questions for visitors: held-out ones of the downstream tasks, and some of the general abilities."""
    trained = tuple(example for task in DOWNSTREAM_TASKS for example in downstream_examples(task, "test", 53, 2))
    general = (
        Example("facts", "What is the capital of Peru?", "Lima"),
        Example("facts", "Name the largest bird.", "the ostrich"),
        Example("sums", "Sara had 31 pens and lost 12. How many pens does Sara have now?", sums.solve("-", (31, 12))),
        Example("choices", "What kind of animal is a whale? A. bird B. mammal C. fish D. insect", "B"),
        Example("talk", "Who are you?", "I am a small language model."),
        Example("talk", "Write a poem about dragons.", talk.REFUSAL),
    )
    return {"What the adapters were trained on": trained, "What they should not forget": general}


EXAMPLE_PROMPTS = _prompts()
