# SPDX-License-Identifier: Apache-2.0
"""Finding the token ids that open a user's turn in a chat template."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from .config import LONGEST_OPENING


Message = dict[str, str]
# They begin with different tokens in any vocabulary, so that the common part before them belongs to the template.
CONTENTS = ("apple", "7", "Zebra", "“", "(")
ANSWER = "cloud"
SYSTEM = "river"


def turn_opening(tokenizer: PreTrainedTokenizerBase) -> list[int] | None:
    """The token ids before the text of every user's turn, and nowhere else, for `SlimConfig.turn_opening`.

    Args:
        tokenizer: with its chat template.

    Returns:
        None if there is no template, or if it does not mark turns by token ids.
    """
    if not tokenizer.chat_template:
        return None

    def encode(messages: Sequence[Message]) -> list[int]:
        ids = tokenizer.apply_chat_template(list(messages), tokenize=True, return_dict=False)
        return cast("list[int]", ids)  # one conversation, tokenised, and no dict

    return opening_of(encode)


def opening_of(encode: Callable[[Sequence[Message]], list[int]]) -> list[int] | None:
    """The same for any function that turns messages into token ids.

    Args:
        encode: conversations of roles "system", "user" and "assistant" to ids; may raise for what it does not know.
    """
    prefixes: list[list[int]] = []
    conversations: list[tuple[list[int], int]] = []
    systems: tuple[list[Message], ...] = ([], [{"role": "system", "content": SYSTEM}])
    for system in systems:
        for earlier in (0, 1, 2):
            attempts = [_try(encode, _messages(system, earlier, content)) for content in CONTENTS]
            encoded = [ids for ids in attempts if ids is not None]
            if len(encoded) < len(attempts):
                if not system and earlier == 0:
                    return None
                continue
            prefixes.append(_common_prefix(encoded))
            conversations += [(ids, earlier + 1) for ids in encoded]
    opening = _common_suffix(prefixes)[-LONGEST_OPENING:]
    if not opening or any(_count(ids, opening) != turns for ids, turns in conversations):
        return None
    return opening


def _messages(system: list[Message], earlier: int, content: str) -> list[Message]:
    turn = [{"role": "user", "content": CONTENTS[0]}, {"role": "assistant", "content": ANSWER}]
    return [*system, *turn * earlier, {"role": "user", "content": content}, {"role": "assistant", "content": ANSWER}]


def _try(encode: Callable[[Sequence[Message]], list[int]], messages: list[Message]) -> list[int] | None:
    try:
        return list(encode(messages))
    except Exception:  # a template is a program and may raise anything
        return None


def _common_prefix(lists: Sequence[Sequence[Any]]) -> list[Any]:
    return [items[0] for items in takewhile(lambda items: len(set(items)) == 1, zip(*lists, strict=False))]


def _common_suffix(lists: Sequence[Sequence[Any]]) -> list[Any]:
    return _common_prefix([items[::-1] for items in lists])[::-1]


def _count(ids: Sequence[int], pattern: Sequence[int]) -> int:
    return sum(list(ids[i : i + len(pattern)]) == list(pattern) for i in range(len(ids) - len(pattern) + 1))
