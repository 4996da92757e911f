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


def printable(text: str) -> str:
    """A text on one line, with escapes in place of line ends, control codes and other invisible characters."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def quoted(value: object, limit: int = 60) -> str:
    """A value from a file for use in a sentence: as Python writes it, on one line, at most `limit` characters."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 2] + "…" + text[-1]


def reason(error: Exception) -> str:
    """Why something failed, for use within a sentence: in the system's words, else the first line of the message."""
    return error.strerror.lower() if isinstance(error, OSError) and error.strerror else first_line(error)


def first_line(error: BaseException | str) -> str:
    """The first line of a library's message, without a full stop, for use within a sentence.

    With the next one, where the first only announces it.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    first = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return first.rstrip(".:")


def with_type(error: BaseException) -> str:
    """The type of an error and the first line of its message, for a log or a table."""
    name, message = type(error).__name__, first_line(error)
    return name if message == name else f"{name}: {message}"


def megabytes(size: int) -> str:
    """`size` bytes for people; small sizes are exact."""
    return f"{size:,} bytes" if size < 1_000_000 else f"{size / 1e6:,.1f} MB"
