# SPDX-License-Identifier: Apache-2.0
"""One question with its answer, and how texts are assigned to splits."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from .relations import SPLITS


@dataclass(frozen=True)
class Example:
    """A question and its one right answer.

    Attributes:
        task: the ability or downstream task it belongs to.
        prompt: the user's message.
        answer: the assistant's message.
    """

    task: str
    prompt: str
    answer: str


# One draw of an example of a split.
Sampler = Callable[[str, Random], Example]


def split_of(text: str) -> str:
    """The split of a text, chosen by its hash: 80 % train, 10 % validation, 10 % test; the same on every machine."""
    bucket = zlib.crc32(text.encode()) % 10
    return {0: "test", 1: "validation"}.get(bucket, "train")


def draw(sample: Sampler, split: str, rng: Random, n: int, distinct: bool) -> list[Example]:
    """`n` examples of a split.

    Args:
        sample: draws one example.
        split: "train", "validation" or "test".
        rng: the source of randomness.
        n: how many.
        distinct: whether no prompt may come twice.

    Raises:
        ValueError: if the split does not exist, or has too few distinct prompts.
    """
    if split not in SPLITS:
        raise ValueError(f"there is no split {split!r}, only {', '.join(SPLITS)}")
    if not distinct:
        return [sample(split, rng) for _ in range(n)]
    by_prompt: dict[str, Example] = {}
    for _ in range(50 * n):
        if len(by_prompt) == n:
            break
        example = sample(split, rng)
        by_prompt.setdefault(example.prompt, example)
    if len(by_prompt) < n:
        raise ValueError(f"only {len(by_prompt)} distinct {split} prompts were found, {n} are wanted")
    return list(by_prompt.values())
