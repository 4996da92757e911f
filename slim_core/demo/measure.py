# SPDX-License-Identifier: Apache-2.0
"""How many questions a model answers correctly, measured by generating answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from random import Random
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..evaluation.statistics import Score, score
from .conversations import Conversation, follow_ups
from .downstream import DOWNSTREAM_TASKS, downstream_examples
from .example import Example
from .world import GENERAL_TASKS, check, general_examples


TASKS = (*GENERAL_TASKS, *DOWNSTREAM_TASKS)
QUALIFYING = ("sums", "facts", "choices")  # tasks the base must be good at
BATCH = 250
LONGEST_ANSWER = 40  # tokens; the longest answer has 32
TURNS = 4

Chat = list[dict[str, str]]
# The base, or an adapter around it.
Model = PreTrainedModel | PeftModel


@cache
def questions(task: str, split: str, n: int) -> tuple[Example, ...]:
    """`n` distinct questions of a task. Deterministic."""
    if task in DOWNSTREAM_TASKS:
        return tuple(downstream_examples(task, split, 0, n))
    return tuple(general_examples(split, 0, n, task))


def chat_message(role: str, content: str) -> dict[str, str]:
    """A message of a chat."""
    return {"role": role, "content": content}


def asked(example: Example) -> Chat:
    """A chat of one question."""
    return [chat_message("user", example.prompt)]


@torch.inference_mode()
def reply(model: Model, tokenizer: PreTrainedTokenizerBase, chats: Sequence[Chat]) -> list[str]:
    """The model's greedy answers.

    Args:
        model: in evaluation mode, with or without an active adapter.
        tokenizer: with the chat template.
        chats: what was said so far. Chats of like length are answered together.
    """
    # Several conversations, and not tokenised.
    texts = cast("list[str]", tokenizer.apply_chat_template(list(chats), tokenize=False, add_generation_prompt=True))
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    answers: dict[int, str] = {}
    for begin in range(0, len(order), BATCH):
        chosen = order[begin : begin + BATCH]
        batch = tokenizer(
            [texts[i] for i in chosen],
            add_special_tokens=False,
            padding=True,
            padding_side="left",
            return_tensors="pt",
        ).to(model.device)
        ids = greedy_ids(model, tokenizer, batch["input_ids"], batch["attention_mask"])
        written = tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        answers.update(zip(chosen, written, strict=True))
    return [answers[i].strip() for i in range(len(texts))]


def greedy_ids(model: Model, tokenizer: PreTrainedTokenizerBase, ids: Tensor, mask: Tensor) -> Tensor:
    """(B, T + answer) int64: the prompts followed by the model's greedy answers, padded at both ends.

    Args:
        model: in evaluation mode.
        tokenizer: whose padding token follows an answer that has ended.
        ids: (B, T) int64 prompts, padded on the left.
        mask: (B, T) 0 for padding.
    """
    # `generate` is annotated for a class that models do not inherit from.
    generated = cast(Any, model).generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=LONGEST_ANSWER,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
    )
    return cast(Tensor, generated)


def mark(examples: Sequence[Example], texts: Sequence[str]) -> str:
    """A "1" for each right answer, and a "0" for each other one."""
    return "".join("1" if check(example, text) else "0" for example, text in zip(examples, texts, strict=True))


def measure(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    split: str,
    n: int,
    tasks: Sequence[str] = TASKS,
    report: Callable[[str], None] = lambda task: None,
) -> dict[str, str]:
    """The marks of every task, see `mark`.

    Args:
        model: in evaluation mode.
        tokenizer: with the chat template.
        split: "validation" or "test".
        n: questions of each task.
        tasks: of `TASKS`.
        report: called with the name of each task that is done.
    """
    marks = {}
    for task in tasks:
        examples = questions(task, split, n)
        marks[task] = mark(examples, reply(model, tokenizer, list(map(asked, examples))))
        report(task)
    return marks


def converse(
    model: Model, tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Conversation]
) -> list[list[str]]:
    """The model's answers in conversations of equal length, turn by turn, each with its own earlier answers as
    history.

    Returns:
        For each turn, the answers of all conversations.
    """
    chats: list[Chat] = [[] for _ in conversations]
    turns = []
    for examples in zip(*conversations, strict=True):
        chats = [chat + asked(example) for chat, example in zip(chats, examples, strict=True)]
        turns.append(reply(model, tokenizer, chats))
        chats = [[*chat, chat_message("assistant", text)] for chat, text in zip(chats, turns[-1], strict=True)]
    return turns


def measure_conversations(model: Model, tokenizer: PreTrainedTokenizerBase, split: str, n: int) -> dict[str, Score]:
    """How well general questions are answered as the first, second, … turn of a conversation.

    The same questions are asked in every turn, so that the first is what the others are to be compared with.

    Args:
        model: in evaluation mode.
        tokenizer: with the chat template.
        split: "validation" or "test".
        n: questions of each task, in each turn; and as many questions that refer to the one before.

    Returns:
        The scores by "turn 1" to "turn 4", and of "follow-ups".
    """
    examples = [example for task in GENERAL_TASKS for example in questions(task, split, n)]
    orders = [Random(f"turn {turn}").sample(examples, len(examples)) for turn in range(TURNS)]
    conversations = [list(turns) for turns in zip(*orders, strict=True)]
    scores = {
        f"turn {turn}": score(mark(order, texts))
        for turn, (order, texts) in enumerate(
            zip(orders, converse(model, tokenizer, conversations), strict=True), start=1
        )
    }
    rng = Random(f"follow-ups {split}")
    leaning = [follow_ups(split, rng, 2) for _ in range(n)]
    *_, texts = converse(model, tokenizer, leaning)
    return scores | {"follow-ups": score(mark([last for _, last in leaning], texts))}
