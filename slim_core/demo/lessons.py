# SPDX-License-Identifier: Apache-2.0
"""What the adapters are trained on: questions of the downstream tasks, alone and as later turns of conversations.

A gate trained on first turns alone treats later ones as unfamiliar. Earlier turns that ask something
general have weight 0: they are read, but nothing is learned from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from .downstream import DOWNSTREAM_TASKS, downstream_examples
from .example import Example
from .measure import asked, chat_message
from .world import general_examples


GENERAL = 10_000  # general questions that earlier turns are drawn from


def lessons(
    n: int,
    earlier: Sequence[int],
    general_share: float,
    tasks: Sequence[str] = DOWNSTREAM_TASKS,
    chat_share: float = 0.0,
) -> list[list[dict[str, Any]]]:
    """Training conversations, each with a different question in its last turn; reproducible by the arguments.

    Args:
        n: questions of each downstream task.
        earlier: how many turns come before the last; one number is drawn for each conversation.
        general_share: share of these turns that ask something general; the others ask about a downstream task.
        tasks: the downstream tasks.
        chat_share: share of all conversations that end in small talk, which is learned too; from 0 to below 1.

    Returns:
        The messages of each.
    """
    rng = Random("lessons")
    trained = [example for task in tasks for example in downstream_examples(task, "train", 0, n)]
    chat = general_examples("train", 1, round(len(trained) * chat_share / (1 - chat_share)), "talk")
    general = general_examples("train", 0, GENERAL)

    def before() -> list[dict[str, Any]]:
        if rng.random() < general_share:
            return _turn(rng.choice(general), {"weight": 0})
        return _turn(rng.choice(trained), {})

    return [
        [message for _ in range(rng.choice(earlier)) for message in before()] + _turn(example, {})
        for example in (*trained, *chat)
    ]


def _turn(example: Example, extra: dict[str, Any]) -> list[dict[str, Any]]:
    return [*asked(example), chat_message("assistant", example.answer) | extra]
