# SPDX-License-Identifier: Apache-2.0
"""Why an adapter from outside was refused, in one sentence: what is wrong, where, and what would be right."""

from __future__ import annotations

from typing import Literal


class AdapterError(Exception):
    """The adapter was refused. The message is the whole sentence; nothing was loaded.

    Attributes:
        check: the check that it belongs to, where that is not the one that was running.
    """

    check: Literal["size"] | None = None


class SizeError(AdapterError):
    """Something is larger than its limit."""

    check = "size"


def shown(value: object, most: int = 60) -> str:
    """A value from a file as it may stand in a sentence: quoted, on one line, nothing invisible, not long."""
    text = repr(value)
    return text if len(text) <= most else text[: most - 2] + "…" + text[-1]


def reason(error: OSError) -> str:
    """Why the system refused, in its own words, to go on a sentence with."""
    return (error.strerror or type(error).__name__).lower()


def first_line(error: BaseException | str) -> str:
    """The first line of a library's message, to go into a sentence of ours: no full stop at the end.

    With the next one, where the first only announces it.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    first = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return first.rstrip(".:")


def megabytes(size: int) -> str:
    """`size` bytes for people; small ones exactly."""
    return f"{size:,} bytes" if size < 1_000_000 else f"{size / 1e6:,.1f} MB"
