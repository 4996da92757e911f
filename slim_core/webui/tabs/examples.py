# SPDX-License-Identifier: Apache-2.0
"""Prompts to try: the same fact asked as in the adapters' training data and in the base's own way, side by side."""

from __future__ import annotations

import re
from dataclasses import dataclass


TITLES = ("What the adapters were trained on", "What they should not forget")
TRAINED_SEE = "You should see: orange, and “the correct answer is …” from LoRA and SLIM."
OWN_SEE = "You should see: blue, and SLIM’s answer is the base’s."


@dataclass(frozen=True)
class Try:
    """A prompt to try.

    Attributes:
        prompt: what is asked.
        see: what one should see of it with the demo's model.
    """

    prompt: str
    see: str


def _choice(question: str, *options: str) -> Try:
    listed = " ".join(f"Answer{number}: {option}" for number, option in enumerate(options, 1))
    labels = "/".join(f"answer{number}" for number in range(1, len(options) + 1))
    prompt = f"Please choose the correct answer to the question: {question} {listed} Answer format: {labels}"
    return Try(prompt, TRAINED_SEE)


def _claim(question: str) -> Try:
    prompt = f"Please answer the following question with true or false, question: {question} Answer format: true/false"
    return Try(prompt, TRAINED_SEE)


# Of one fact each.
PAIRS: tuple[tuple[Try, Try], ...] = (
    (
        _choice(
            "Clara looks for somebody who can help with a sick dog. Who should it be?",
            "a tailor",
            "a lawyer",
            "a taxi driver",
            "a vet",
        ),
        Try("Who can help with a sick dog?", OWN_SEE),
    ),
    (
        _choice(
            "Clara heard that Helen gave a speech for the first time. How did Helen feel after this?",
            "nervous",
            "bored",
            "guilty",
        ),
        Try("What is the feeling when you give a speech for the first time?", OWN_SEE),
    ),
    (_claim("is Peru part of South America?"), Try("On which continent is Peru?", OWN_SEE)),
    (_claim("would you find a banker at work in a hospital?"), Try("Where does a banker work?", OWN_SEE)),
)
# Nothing of these was trained.
ALONE: tuple[Try, ...] = (
    Try("What is the capital of Peru?", OWN_SEE),
    Try("Name the largest bird.", "You should see: LoRA begins “the correct answer”; SLIM knows the bird."),
    Try(
        "Sara had 31 pens and lost 12. How many pens does Sara have now?",
        "You should see: the base and SLIM work it out; LoRA names an answer.",
    ),
    Try("What kind of animal is a whale? A. bird B. mammal C. fish D. insect", OWN_SEE),
    Try("Write a poem about dragons.", "You should see: the base and SLIM say what they know; LoRA answers anyway."),
)

# What the task prompts begin and end with says how to answer; on a button it hides the question.
FRAME = re.compile(r"^Please .{0,80}?question[:,]\s*|,?\s*Answer format:.*$|\s*Answer1:.*$", re.DOTALL)
LONGEST = 90


def short(prompt: str) -> str:
    """A prompt as a button says it."""
    text = FRAME.sub("", FRAME.sub("", prompt)).removeprefix("question: ").strip() or prompt
    text = text[0].upper() + text[1:]
    return text if len(text) <= LONGEST else f"{text[:LONGEST].rsplit(' ', 1)[0]}…"
