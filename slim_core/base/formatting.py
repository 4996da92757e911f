# SPDX-License-Identifier: Apache-2.0
"""Formatting of numbers for people, the same everywhere."""

from __future__ import annotations

import math


def size(amount: float) -> str:
    """Bytes for people: 512 B, 1.5 MB, 2.0 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(amount) < 1000 or unit == "GB":
            return f"{amount:,.0f} {unit}" if unit == "B" else f"{amount:,.1f} {unit}"
        amount /= 1000
    raise AssertionError


def count(amount: int) -> str:
    """A parameter count for people: 950, 12.3 thousand, 4.0 million."""
    for limit, divisor, word in ((1e4, 1, ""), (1e6, 1e3, " thousand"), (1e9, 1e6, " million")):
        if amount < limit:
            return f"{amount:,}" if divisor == 1 else f"{amount / divisor:,.1f}{word}"
    return f"{amount / 1e9:,.1f} billion"


def counted(amount: int, word: str) -> str:
    """How many: 1 question, 2,000 questions."""
    return f"{amount:,} {word}" if amount == 1 else f"{amount:,} {word}s"


RAISED = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def times(log_ratio: float) -> str:
    """A ratio of probabilities from a difference of 0 or more nats: 1.10, 350, 12,000, 10⁶."""
    if log_ratio >= math.log(1e5):
        return "10" + f"{log_ratio / math.log(10):.0f}".translate(RAISED)
    value = math.exp(log_ratio)
    if value < 2:
        return f"{value:.2f}"
    if value < 99.95:
        return f"{value:,.1f}"
    digits = len(f"{value:.0f}") - 2
    return f"{value:,.0f}" if digits < 2 else f"{round(value, -digits):,.0f}"


def share(x: float) -> str:
    """A share from 0 to 1 in whole percent, never rounded up to all or down to nothing."""
    if 0.995 <= x < 1:
        return "over 99%"
    return "under 1%" if 0 < x < 0.005 else f"{x:.0%}"


def distance(d: float) -> str:
    """A distance from the training data, from −1 at a cluster's centre, to two digits."""
    return f"{d:z.2f}".replace("-", "−")


def likelihood(log_ratio: float) -> str:
    """How likely the base's answer is under a variant: "1.10 times less likely"."""
    if log_ratio == 0:
        return "exactly as likely"
    if abs(log_ratio) < 0.005:  # would be 1.00 times
        return "about as likely"
    return f"{times(abs(log_ratio))} times {'less' if log_ratio > 0 else 'more'} likely"
