# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities of tokens, with the likeliest alternatives at each position."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .draft import Draft
from .types import TokenLogProb


def log_probs_of(logits: Tensor, tokens: Sequence[int], likeliest: int) -> list[TokenLogProb]:
    """Log-probabilities from the model's own logits, computed in float32.

    Args:
        logits: (T, V), of any floating dtype.
        tokens: T token ids, one for each position.
        likeliest: how many of the likeliest tokens are returned; fewer if the vocabulary is smaller.
    """
    log_p = logits.float().log_softmax(-1)
    chosen = log_p.gather(-1, torch.tensor(tokens, device=log_p.device).unsqueeze(-1)).squeeze(-1).tolist()
    values, ids = (tensor.tolist() for tensor in log_p.topk(min(likeliest, log_p.shape[-1]), -1))
    return [
        TokenLogProb(token, value, tuple(zip(best, best_values, strict=True)))
        for token, value, best, best_values in zip(tokens, chosen, ids, values, strict=True)
    ]


@torch.inference_mode()
def of_chosen(answers: Sequence[Draft], logits: Tensor, tokens: Sequence[int]) -> list[TokenLogProb | None]:
    """Log-probabilities of the tokens chosen for the rows of a batch; None for rows that did not ask for them.

    Args:
        answers: the B rows.
        logits: (B, V).
        tokens: B of them.
    """
    log_probs: list[TokenLogProb | None] = [None] * len(answers)
    for row, answer in enumerate(answers):
        if answer.likeliest is not None:
            log_probs[row] = log_probs_of(logits[row : row + 1], tokens[row : row + 1], answer.likeliest)[0]
    return log_probs


@torch.inference_mode()
def add_of_prompt(answer: Draft, logits: Tensor, begin: int) -> None:
    """Add the log-probabilities of a piece of a prompt to its answer.

    Args:
        answer: whose prompt it is.
        logits: (T, V) after the prompt's tokens from `begin` on; those after its last token are ignored.
        begin: index of the first of these tokens.
    """
    tokens = answer.prompt[begin + 1 : begin + 1 + len(logits)]
    if tokens:
        answer.prompt_log_probs += log_probs_of(logits[: len(tokens)], tokens, answer.likeliest or 0)
