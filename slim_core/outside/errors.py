# SPDX-License-Identifier: Apache-2.0
"""Why an adapter from outside was refused, in one sentence: what is wrong, where, and what would be right."""

from __future__ import annotations

import re
from typing import Literal


class AdapterError(Exception):
    """The adapter was refused and nothing was loaded. The message is a complete sentence.

    Attributes:
        check: the check that it belongs to, where that is not the one that was running.
    """

    check: Literal["size"] | None = None


class SizeError(AdapterError):
    """Something is larger than its limit."""

    check = "size"


# Codes that a terminal obeys, and marks that turn the direction of what follows.
OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    """A text for the terminal, of any number of lines, with escapes in place of control codes."""
    return OBEYED.sub(lambda match: repr(match[0])[1:-1], text)


def shown(value: object, limit: int = 60) -> str:
    """A value from a file for use in a sentence: quoted, on one line, short, without invisible characters."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 2] + "…" + text[-1]


def reason(error: OSError) -> str:
    """The system's own reason for an error, for use within a sentence."""
    return (error.strerror or type(error).__name__).lower()


def first_line(error: BaseException | str) -> str:
    """The first line of a library's message, without a full stop, for use within a sentence.

    With the next one, where the first only announces it.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    first = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return first.rstrip(".:")


def megabytes(size: int) -> str:
    """`size` bytes for people; small sizes are exact."""
    return f"{size:,} bytes" if size < 1_000_000 else f"{size / 1e6:,.1f} MB"
