# SPDX-License-Identifier: Apache-2.0
"""Messages of a conversation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple


Role = Literal["system", "user", "assistant"]


class Message(NamedTuple):
    """One message of a conversation."""

    role: Role
    content: str


def answer_begun(messages: Sequence[Message]) -> bool:
    """Whether a conversation ends with the beginning of an answer, which is to go on."""
    return bool(messages) and messages[-1].role == "assistant" and bool(messages[-1].content.strip())
