# SPDX-License-Identifier: Apache-2.0
"""How much of a prompt bypasses LoRA, whether that separates trained tasks from others, and which answers are
exact.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from transformers import BatchEncoding, PreTrainedTokenizerBase

import slim_core

from ..evaluation.statistics import auc
from .chat import USER
from .downstream import DOWNSTREAM_TASKS
from .measure import TASKS, Chat, Model, asked, greedy_ids, questions
from .world import GENERAL_TASKS


BATCH = 100


@torch.inference_mode()
def identity_shares(model: Model, tokenizer: PreTrainedTokenizerBase, chats: Sequence[Chat]) -> Tensor:
    """(chats, blocks) float32: the share of the last question that goes past LoRA.

    The mean over its tokens after the opening of its turn, up to where the answer begins, and over a block's Linears.

    Args:
        model: with a SLIM adapter, in evaluation mode.
        tokenizer: with the chat template.
        chats: what was said so far.
    """
    opening = tokenizer.convert_tokens_to_ids(USER)
    chat_shares = []
    for batch in _batches(model, tokenizer, chats, "right"):
        with slim_core.trace_routing(model) as trace:
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        for row, ids in enumerate(batch["input_ids"].tolist()):
            routing = trace.row(row)
            asked_from = len(ids) - ids[::-1].index(opening)
            shares = routing.identity[:, asked_from:].mean(1)
            blocks: dict[str, list[Tensor]] = {}
            for module, share in zip(routing.modules, shares, strict=True):
                blocks.setdefault(_block(module), []).append(share)
            chat_shares.append(torch.stack([torch.stack(values).mean() for values in blocks.values()]))
    return torch.stack(chat_shares)


@torch.inference_mode()
def exact_answers(model: Model, tokenizer: PreTrainedTokenizerBase, chats: Sequence[Chat]) -> list[bool]:
    """Whether every gate was 0 at every token of the prompt and of the greedy answer.

    Then each Linear gave the base's output, so that the answer is the base's by construction.

    Args:
        model: with a SLIM adapter, in evaluation mode.
        tokenizer: with the chat template.
        chats: what was said so far.
    """
    exact = []
    for batch in _batches(model, tokenizer, chats, "left"):
        with slim_core.trace_routing(model) as trace:
            ids = greedy_ids(model, tokenizer, batch["input_ids"], batch["attention_mask"])
        width = batch["input_ids"].shape[1]
        for row, asked_tokens in enumerate(batch["attention_mask"].sum(1).tolist()):
            answer = ids[row, width:].tolist()
            ends = [i for i, token in enumerate(answer) if token == tokenizer.eos_token_id]
            # The token that ends an answer is not read any more; what follows it is padding.
            read = asked_tokens + (ends[0] if ends else len(answer) - 1)
            exact.append(bool((trace.row(row).gate[:, :read] == 0).all()))
    return exact


def _batches(
    model: Model, tokenizer: PreTrainedTokenizerBase, chats: Sequence[Chat], side: str
) -> Iterator[BatchEncoding]:
    """The chats as read before an answer, padded on one side."""
    texts = tokenizer.apply_chat_template(list(chats), tokenize=False, add_generation_prompt=True)
    for begin in range(0, len(texts), BATCH):
        yield tokenizer(
            texts[begin : begin + BATCH],
            add_special_tokens=False,
            padding=True,
            padding_side=side,
            return_tensors="pt",
        ).to(model.device)


def _block(module: str) -> str:
    """The name of the block that a Linear is in."""
    match = re.match(r".*?\.\d+(?=\.)|.*", module)
    assert match is not None  # any name matches
    return match[0]


def measure_identity(model: Model, tokenizer: PreTrainedTokenizerBase, split: str, n: int) -> dict[str, Any]:
    """The share of each task's prompts that bypasses LoRA.

    Args:
        model: with a SLIM adapter, in evaluation mode.
        tokenizer: with the chat template.
        split: "validation" or "test".
        n: questions of each task.

    Returns:
        "tasks": the mean share of each task's prompts; "auc": how often a general prompt has a greater share than a
        trained one; "blocks": the same two for each block, from the first to the last; "exact": the share of
        each task's answers that are the base's by construction.
    """
    shares = {
        task: identity_shares(model, tokenizer, [asked(example) for example in questions(task, split, n)])
        for task in TASKS
    }
    exact = {
        task: fmean(exact_answers(model, tokenizer, [asked(example) for example in questions(task, split, n)]))
        for task in TASKS
    }
    blocks = next(iter(shares.values())).shape[1]
    return _separation({task: share.mean(1) for task, share in shares.items()}) | {
        "blocks": [_separation({task: share[:, block] for task, share in shares.items()}) for block in range(blocks)],
        "exact": exact,
    }


def _separation(shares: Mapping[str, Tensor]) -> dict[str, Any]:
    trained, general = (
        [share for task in tasks for share in shares[task].tolist()] for tasks in (DOWNSTREAM_TASKS, GENERAL_TASKS)
    )
    return {"tasks": {task: share.mean().item() for task, share in shares.items()}, "auc": auc(trained, general)}
