# SPDX-License-Identifier: Apache-2.0
"""How many questions a model answers rightly, by letting it answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .downstream import DOWNSTREAM_TASKS, downstream_examples
from .example import Example
from .world import GENERAL_TASKS, check, general_examples


TASKS = (*GENERAL_TASKS, *DOWNSTREAM_TASKS)
QUALIFYING = ("sums", "facts", "choices")  # what the base must be good at
BATCH = 250
LONGEST_ANSWER = 40  # tokens; the longest answer has 32


class Score(NamedTuple):
    """A share of right answers with its 95 % interval.

    Attributes:
        score: 0 to 1.
        low, high: Wilson's score interval.
    """

    score: float
    low: float
    high: float


def wilson(right: int, n: int, z: float = 1.959964) -> Score:
    """The share of right answers and Wilson's score interval, which also holds near 0 and 1.

    Args:
        right: right answers.
        n: all answers.
        z: half the interval's width in standard deviations; 95 % by default.
    """
    share = right / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Score(share, max(0.0, middle - half), min(1.0, middle + half))


def questions(task: str, split: str, n: int) -> list[Example]:
    """`n` distinct questions of a task. The same ones for everybody who asks."""
    if task in DOWNSTREAM_TASKS:
        return downstream_examples(task, split, 0, n)
    return general_examples(split, 0, n, task)


@torch.inference_mode()
def answers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> list[str]:
    """The model's greedy answers.

    Args:
        model: in evaluation mode, with or without an active adapter.
        tokenizer: with the chat template.
        examples: what is asked. Questions of like length are answered together.
    """
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].prompt))
    found: dict[int, str] = {}
    for begin in range(0, len(order), BATCH):
        chosen = order[begin : begin + BATCH]
        chats = [[{"role": "user", "content": examples[i].prompt}] for i in chosen]
        texts = tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
        batch = tokenizer(texts, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt").to(
            model.device
        )
        ids = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=LONGEST_ANSWER,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )
        written = tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        found.update(zip(chosen, written, strict=True))
    return [found[i].strip() for i in range(len(examples))]


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    split: str,
    n: int,
    tasks: Sequence[str] = TASKS,
    report: Callable[[str], None] = lambda task: None,
) -> dict[str, Score]:
    """The score of every task.

    Args:
        model: in evaluation mode.
        tokenizer: with the chat template.
        split: "validation" or "test".
        n: questions of each task.
        tasks: of `TASKS`.
        report: called with the name of each task that is done.
    """
    scores = {}
    for task in tasks:
        asked = questions(task, split, n)
        right = sum(map(check, asked, answers(model, tokenizer, asked)))
        scores[task] = wilson(right, n)
        report(task)
    return scores


def mean(scores: dict[str, Score], tasks: Sequence[str]) -> float:
    """The mean score of some tasks."""
    return sum(scores[task].score for task in tasks) / len(tasks)
