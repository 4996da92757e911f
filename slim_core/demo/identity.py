# SPDX-License-Identifier: Apache-2.0
"""How much of a prompt goes past LoRA, and whether that tells what was trained from everything else."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

import slim_core

from .chat import USER
from .downstream import DOWNSTREAM_TASKS
from .measure import TASKS, Chat, Model, asked, questions
from .statistics import auc
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
    texts = tokenizer.apply_chat_template(list(chats), tokenize=False, add_generation_prompt=True)
    opening = tokenizer.convert_tokens_to_ids(USER)
    found = []
    for begin in range(0, len(texts), BATCH):
        batch = tokenizer(
            texts[begin : begin + BATCH],
            add_special_tokens=False,
            padding=True,
            padding_side="right",
            return_tensors="pt",
        ).to(model.device)
        with slim_core.trace_routing(model) as trace:
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        for row, ids in enumerate(batch["input_ids"].tolist()):
            routing = trace.row(row)
            asked_from = len(ids) - ids[::-1].index(opening)
            shares = routing.identity[:, asked_from:].mean(1)
            blocks: dict[str, list[Tensor]] = {}
            for module, share in zip(routing.modules, shares, strict=True):
                blocks.setdefault(_block(module), []).append(share)
            found.append(torch.stack([torch.stack(values).mean() for values in blocks.values()]))
    return torch.stack(found)


def _block(module: str) -> str:
    """The name of the block that a Linear is in."""
    found = re.match(r".*?\.\d+(?=\.)|.*", module)
    assert found is not None  # any name matches
    return found[0]


def measure_identity(model: Model, tokenizer: PreTrainedTokenizerBase, split: str, n: int) -> dict[str, Any]:
    """What every task's prompts send past LoRA.

    Args:
        model: with a SLIM adapter, in evaluation mode.
        tokenizer: with the chat template.
        split: "validation" or "test".
        n: questions of each task.

    Returns:
        "tasks": the mean share of each task's prompts; "auc": how often a general prompt has a greater share than a
        trained one; "blocks": the same two for each block alone, from the first to the last.
    """
    shares = {
        task: identity_shares(model, tokenizer, [asked(example) for example in questions(task, split, n)])
        for task in TASKS
    }
    blocks = next(iter(shares.values())).shape[1]
    return _told_apart({task: share.mean(1) for task, share in shares.items()}) | {
        "blocks": [_told_apart({task: share[:, block] for task, share in shares.items()}) for block in range(blocks)]
    }


def _told_apart(shares: Mapping[str, Tensor]) -> dict[str, Any]:
    trained, general = (
        [share for task in tasks for share in shares[task].tolist()] for tasks in (DOWNSTREAM_TASKS, GENERAL_TASKS)
    )
    return {"tasks": {task: share.mean().item() for task, share in shares.items()}, "auc": auc(trained, general)}
