# SPDX-License-Identifier: Apache-2.0
"""Whether a model can learn to end its answers: the row of the token that closes them must be one of its own.

A base that was never trained on chats has tokens for them whose rows are still as they were first drawn, all alike.
What is adapted below the output head cannot choose one of several tokens whose rows are alike.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase


# Of the distance that two rows usually have. Rows that were trained for another token are about as far as any.
NEAR = 0.1
# So many tokens with the same row are no accident.
ALIKE = 2
ROWS_AT_ONCE = 8192


@torch.no_grad()
def tokens_alike(weight: Tensor, token: int) -> int:
    """How many other tokens have nearly the same row.

    Args:
        weight: (V, C) of the output head.
        token: whose row it is.
    """
    row = weight[token].float()
    distances = torch.cat([torch.linalg.norm(part.float() - row, dim=1) for part in weight.split(ROWS_AT_ONCE)])
    return int((distances <= NEAR * distances.median()).sum()) - 1


def unlearnable_sentence(base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, closing: int | None) -> str | None:
    """What to say of a base whose answers would never end; None if they can.

    Args:
        base: the base model.
        tokenizer: of the base.
        closing: the token that closes an answer; None if there is none.
    """
    head = base.get_output_embeddings()
    weight = getattr(head, "weight", None)
    if closing is None or weight is None or weight.dim() != 2 or not weight.is_floating_point():
        return None
    others = tokens_alike(weight, closing)
    if others < ALIKE:
        return None
    name = tokenizer.convert_ids_to_tokens(closing)
    return (
        f"Answers may never end: they are closed by {name}, but its row in the output head is like those of "
        f"{others:,} other tokens, so it was never trained, and nothing that is adapted below the head can choose it; "
        "pass --train-closing-token to train its row too, or choose a base that was trained on chats."
    )
