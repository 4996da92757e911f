# SPDX-License-Identifier: Apache-2.0
"""Whether a model can learn to end its answers: the closing token must have a distinct row.

A base that was never trained on chats has tokens for them whose rows are still as they were first drawn, all alike.
What is adapted below the output head cannot choose one of several tokens whose rows are alike. Then the token's row is
trained too, or answers are stopped at a text with which all of them end in the data.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..outside.record import MOST_ENDING
from .encoding import IGNORED, EncodedExample


# Share of the usual distance between two rows. Rows trained for different tokens are about as far apart as any.
NEAR = 0.1
# This many tokens with the same row are not a coincidence.
ALIKE = 2
ROWS_AT_ONCE = 8192
# A mark at the end of a text that is not part of its content: ###, <end>, [END], END.
MARK = re.compile(r"""(?:[^\w\s"'`(){}\[\].,;:!?]{2,}|<\|?\w+\|?>|</s>|\[/?[A-Z_]{2,}\]|(?<!\w)[A-Z]{3,})\Z""")


@torch.no_grad()
def tokens_alike(weight: Tensor, token: int) -> int:
    """How many other tokens have nearly the same row as this one.

    Args:
        weight: (V, C) of the output head.
        token: whose row it is.
    """
    row = weight[token].float()
    distances = torch.cat([torch.linalg.norm(chunk.float() - row, dim=1) for chunk in weight.split(ROWS_AT_ONCE)])
    return int((distances <= NEAR * distances.median()).sum()) - 1


def confused_with(base: PreTrainedModel, closing: int | None) -> int:
    """How many other tokens a model cannot distinguish from the one that closes its answers.

    Args:
        base: the base model.
        closing: the token that closes an answer; None if there is none.
    """
    head = base.get_output_embeddings()
    weight = getattr(head, "weight", None)
    if closing is None or weight is None or weight.dim() != 2 or not weight.is_floating_point():
        return 0
    others = tokens_alike(weight, closing)
    return others if others >= ALIKE else 0


def unlearnable_sentence(closing: str, others: int, mark: str | None) -> str:
    """What to say of a base whose answers would never end.

    Args:
        closing: the token that closes an answer.
        others: number of tokens from which it cannot be distinguished.
        mark: with which all answers in the data end; None if they do not.
    """
    if mark is None:
        stop = "let every answer in the data end with a mark of its own, such as ###, at which they can be stopped"
    else:
        stop = f"stop answers at {mark!r}, with which all in the data end: compare and the app do so by themselves"
    return (
        f"Answers may never end: they are closed by {closing}, but its row in the output head is like those of "
        f"{others:,} other tokens, so it was never trained, and no adapter below the head can make the model choose "
        f"it; pass --train-closing-token to train its row too, {stop}, or choose a base that was trained on chats."
    )


def learned_mark(examples: Sequence[EncodedExample], tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The mark with which every answer ends that is learned; None if they end otherwise or share none."""
    return common_mark(answer for example in examples for answer in _answers(example, tokenizer))


def _answers(example: EncodedExample, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Texts of the answers, without the token that closes them."""
    runs: list[list[int]] = [[]]
    for token, label in zip(example.input_ids, example.labels, strict=True):
        if label != IGNORED:
            runs[-1].append(token)
        elif runs[-1]:
            runs.append([])
    return [str(tokenizer.decode(run, skip_special_tokens=True)).strip() for run in runs if run]


def common_mark(answers: Iterable[str]) -> str | None:
    """The mark that stands at the end of every answer and nowhere else in one; None if there is none."""
    texts = list(answers)
    # One more, so that what is cut off is seen to be a part of something.
    mark = MARK.search(texts[0][-MOST_ENDING - 1 :]) if texts else None
    if mark is None or len(mark[0]) > MOST_ENDING:
        return None
    alone = all(
        answer.endswith(mark[0]) and 0 < answer.find(mark[0]) == len(answer) - len(mark[0]) for answer in texts
    )
    return mark[0] if alone else None
