# SPDX-License-Identifier: Apache-2.0
"""The next token of all rows of a batch, each chosen with its caller's settings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .draft import NO_TOKEN, Draft, Work
from .sampling import most_likely


@torch.inference_mode()
def choose(works: Sequence[Work], answers: Sequence[Draft], logits: Tensor) -> tuple[Tensor, list[int], list[bool]]:
    """The next token of each row, chosen with its caller's settings; see `Sampler.choose`."""
    # None stands for all callers that take the most likely token.
    rows_by_chooser: dict[Work | None, list[int]] = {}
    for row, work in enumerate(works):
        rows_by_chooser.setdefault(None if work.sampler.plain else work, []).append(row)
    if len(rows_by_chooser) == 1:
        return _chosen(next(iter(rows_by_chooser)), answers, logits)
    tokens = torch.empty(len(works), dtype=torch.int64, device=logits.device)
    ids, finite = [0] * len(works), [False] * len(works)
    for chooser, rows in rows_by_chooser.items():
        choice = _chosen(chooser, [answers[row] for row in rows], logits[rows])
        tokens[rows] = choice[0]
        for row, token, is_finite in zip(rows, *choice[1:], strict=True):
            ids[row], finite[row] = token, is_finite
    return tokens, ids, finite


def _chosen(chooser: Work | None, answers: Sequence[Draft], logits: Tensor) -> tuple[Tensor, list[int], list[bool]]:
    """The next token of the rows of one chooser; None takes the most likely ones."""
    if chooser is None:
        return most_likely(logits.float())
    seen = None
    if chooser.sampler.counts_repetitions:
        texts = [answer.seen(logits.device) for answer in answers]
        seen = pad_sequence(texts, batch_first=True, padding_value=NO_TOKEN)
    return chooser.sampler.choose(logits, seen)
