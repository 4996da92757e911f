# SPDX-License-Identifier: Apache-2.0
"""Whether the fields of a configuration may have their values. Each check names the field and what would be right."""

from __future__ import annotations

import sys


def check_integer(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"`{name}` must be a whole number, not {abbreviated(value)}.")
    if value < least:
        raise ValueError(f"`{name}` must be {least} or more, not {abbreviated(value)}.")


# As float32 a larger strength is infinite, and infinity times no excess is not a number.
TOO_STRONG = 1e38


def check_number(name: str, value: object, least: float, below: float | None = None, strict: bool = False) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not _is_finite(value):
        raise ValueError(f"`{name}` must be a finite number, not {abbreviated(value)}.")
    if value < least or (strict and value == least) or (below is not None and value >= below):
        low = f"above {least}" if strict else f"{least} or more"
        high = "" if below is None else f" and below {below}"
        raise ValueError(f"`{name}` must be {low}{high}, not {abbreviated(value)}.")


def _is_finite(value: float) -> bool:
    """Whether a float can represent the number. Python compares integers of any length but cannot convert all of
    them.
    """
    return abs(value) <= sys.float_info.max


def check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, choices))}, not {abbreviated(value)}.")


def abbreviated(value: object) -> str:
    """A value for use in a sentence, at most 60 characters, even an integer that is too long for Python to print."""
    if isinstance(value, int) and abs(value) >= 10**40:
        return "one of more than 40 digits"
    text = repr(value)
    return text if len(text) <= 60 else text[:58] + "…" + text[-1]
