# SPDX-License-Identifier: Apache-2.0
"""The routing record of one answer, as shown to users."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import torch

from ..base.prompts import Prompts
from ..peft_tools import RowRouting
from .types import RoutingRecord


# The first number in a Linear's name counts the decoder blocks in every family: model.layers.3.mlp.up_proj.
BLOCK = re.compile(r"(?:^|\.)(\d+)\.")


def routing_of(
    variant: str,
    prompt: Sequence[int],
    ids: Sequence[int],
    records: list[RowRouting],
    prompts: Prompts,
    opening: Sequence[int],
    only_in: Callable[[Sequence[str]], bool],
) -> RoutingRecord:
    """Everything recorded of an answer so far.

    Args:
        variant: whose answer it is.
        prompt: token ids of the conversation.
        ids: token ids of the answer so far; there may be one more than is recorded.
        records: its records so far; they are joined in place, so that the next call is as fast.
        prompts: turns tokens into texts.
        opening: the token ids that open a user's turn for this variant; empty if none do.
        only_in: whether the variant changes the model in Linears of these names alone.
    """
    count = len(records)
    joined = joined_records(records[:count])
    # The thread that runs the next forward may have appended a record meanwhile.
    records[:count] = [joined]
    tokens = joined.weights.shape[1]
    return RoutingRecord(
        variant=variant,
        tokens=prompts.token_texts([*prompt, *ids][:tokens]),
        prompt_tokens=len(prompt),
        modules=tuple(joined.modules),
        blocks=tuple(block_of(name) for name in joined.modules),
        num_experts=joined.num_experts,
        weights=joined.weights,
        distance=joined.distance,
        cluster=joined.cluster,
        gate=joined.gate,
        reference=joined.reference,
        turn=_last_turn(prompt, opening),
        complete=only_in(joined.modules),
    )


def _last_turn(prompt: Sequence[int], opening: Sequence[int]) -> int:
    """Where the context of the last user turn begins: at the last token of its opening."""
    size = len(opening)
    places = (end for end in range(len(prompt), size - 1, -1) if list(prompt[end - size : end]) == list(opening))
    return next(places, 1) - 1 if size else 0


def joined_records(records: Sequence[RowRouting]) -> RowRouting:
    """Join the records of consecutive tokens.

    An output head reads only the last token of a prompt. It is missing from the first record and so from the whole.
    """
    if len(records) == 1:
        return records[0]
    modules = records[0].modules
    pieces = []
    for record in records:
        if record.modules != modules:
            order = [record.modules.index(name) for name in modules]
            record = RowRouting(modules, record.num_experts, *(values[order] for values in record[2:]))
        pieces.append(record)
    return RowRouting(
        modules,
        records[0].num_experts,
        *(torch.cat(parts, dim=1) for parts in zip(*(piece[2:] for piece in pieces), strict=True)),
    )


def block_of(module: str) -> int:
    """The decoder block of a Linear, counted from 0; Linears outside all blocks count as part of the first."""
    match = BLOCK.search(module)
    return int(match[1]) if match else 0
