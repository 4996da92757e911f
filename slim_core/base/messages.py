# SPDX-License-Identifier: Apache-2.0
"""Messages of a conversation."""

from __future__ import annotations

from typing import Literal, NamedTuple


Role = Literal["system", "user", "assistant"]


class Message(NamedTuple):
    """One message of a conversation."""

    role: Role
    content: str
