# SPDX-License-Identifier: Apache-2.0
"""A task: items to solve, and how they are scored. Plain data, independent of any model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from typing import Any, Literal

from ...base.messages import Message
from ...inference.types import Passage
from ..marking import Expected
from ..rules import Rules


# What the adapters were trained on, and what the base knew before.
Kind = Literal["downstream", "general"]
# letters: the most likely label of the options in the prompt. likelihood: the most likely option text. written: the
# option or number named in a written answer. rules: rules are checked on a written answer. captured: whether a written
# answer has the form of trained answers. loss: nats per token of texts.
Scoring = Literal["letters", "likelihood", "written", "rules", "captured", "loss"]
WRITTEN = ("written", "rules", "captured")
# A conversation, or plain text.
Prompt = tuple[Message, ...] | str


@dataclass(frozen=True)
class Question:
    """A question with options, answered by the likelihood of each.

    Attributes:
        options: for each option its words and what comes before them.
        right: indices of the options that count as right.
        shown: the options for people.
    """

    options: tuple[Passage, ...]
    right: tuple[int, ...]
    shown: tuple[str, ...]


@dataclass(frozen=True)
class Request:
    """A question to be answered in words.

    Attributes:
        prompt: what is asked.
        expected: what counts as right.
    """

    prompt: Prompt
    expected: Expected | Rules


@dataclass(frozen=True)
class Text:
    """A text whose loss is measured."""

    passage: Passage


Item = Question | Request | Text


@dataclass(frozen=True)
class Task:
    """Items that are scored in the same way.

    Attributes:
        name: unique in an evaluation.
        title: its name in words.
        kind: what it is about.
        scoring: how its items are scored.
        items: what is to be solved.
        metric: "acc", or "acc_norm" where the likelihood of an option is divided by its characters.
        until: texts that end a written answer.
        max_new_tokens: of a written answer.
        source: where the items are from.
    """

    name: str
    title: str
    kind: Kind
    scoring: Scoring
    items: Sequence[Item]
    metric: Literal["acc", "acc_norm"] = "acc"
    until: tuple[str, ...] = ()
    max_new_tokens: int = 256
    source: str = ""
    chance: float | None = field(init=False)

    def __post_init__(self) -> None:
        shares = [len(item.right) / len(item.options) for item in self.items if isinstance(item, Question)]
        object.__setattr__(self, "chance", sum(shares) / len(shares) if shares else None)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that affects the scores."""
        inputs = (self.scoring, self.metric, self.until, self.max_new_tokens, [_plain(item) for item in self.items])
        return hashlib.sha256(json.dumps(inputs, ensure_ascii=True, sort_keys=True).encode()).hexdigest()


def _plain(item: Item) -> Any:
    assert is_dataclass(item)
    return [type(item).__name__, asdict(item)]


def short_title(title: str) -> str:
    """A task's title without the data set that it resembles, for the head of a column."""
    return title.split(" (")[0].split(", as in")[0]


def asked(item: Item) -> str:
    """What an item asks, for people."""
    prompt: Prompt
    if isinstance(item, Request):
        prompt = item.prompt
    elif isinstance(item, Text):
        prompt = item.passage.words
    else:
        first = item.options[0].before
        same = all(option.before == first for option in item.options)
        prompt = first if same else item.options[0].words
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return prompt[0].content
    return "\n\n".join(f"{message.role}: {message.content}" for message in prompt)
