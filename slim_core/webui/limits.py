# SPDX-License-Identifier: Apache-2.0
"""Limits on what a visitor may send. Anything wrong is reported in one sentence before it reaches the model."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from ..inference import GateSetting
    from ..inference.types import Sampling


# Far more than any model reads; it keeps the tokenizer from processing a pasted book.
MAX_CHARACTERS = 100_000
MAX_STOPS = 8
MAX_STOP_CHARACTERS = 100
# Whole numbers that a browser keeps exactly.
MAX_SEED = 2**53 - 1
ALLOWED_CONTROLS = "\n\r\t"


class LimitError(ValueError):
    """A value was refused. The message is one sentence for its sender."""


@dataclass(frozen=True)
class Range:
    """The range that a number must be in.

    Attributes:
        name: for people.
        low: the least.
        high: the most.
        whole: whether it must be a whole number.
    """

    name: str
    low: float
    high: float
    whole: bool = False

    def check(self, value: Any) -> float | int:
        """The number; raises LimitError if it is not allowed."""
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or (isinstance(value, float) and not math.isfinite(value)):
            raise LimitError(f"{self.name} must be a number.")
        if not self.low <= value <= self.high:
            # An integer may have more digits than Python would write.
            actual = f"; it is {value:,}" if abs(value) < 1e15 else ""
            raise LimitError(f"{self.name} must be between {self.low:,} and {self.high:,}{actual}.")
        if self.whole and value != int(value):
            raise LimitError(f"{self.name} must be a whole number; it is {value:,}.")
        return int(value) if self.whole else float(value)


RANGES = {
    "temperature": Range("Temperature", 0, 2),
    "top_p": Range("Top-p", 0.01, 1),
    "top_k": Range("Top-k", 0, 1000, whole=True),
    "min_p": Range("Min-p", 0, 1),
    "repetition_penalty": Range("Repetition penalty", 0.5, 2),
    "max_new_tokens": Range("Longest answer", 1, 4096, whole=True),
    "seed": Range("Seed", 0, MAX_SEED, whole=True),
}


def ranges(longest: int | None = None) -> dict[str, Range]:
    """The range of each number; an answer may have at most `longest` tokens."""
    if longest is None:
        return RANGES
    return RANGES | {"max_new_tokens": replace(RANGES["max_new_tokens"], high=longest)}


# Of a gate: a strength of 0 is always open.
STRENGTH, QUANTILE = Range("Strength", 0, 100), Range("Quantile", 0, 1)


def check_gate(strength: Any, quantile: Any, stored: Sequence[float] | None = None) -> GateSetting:
    """Check what is asked of a gate; None leaves a number as it was trained.

    Args:
        strength: how strongly it closes.
        quantile: where it begins to close.
        stored: the quantiles that its adapter stores; None if that is not here.
    """
    # As in `check_sampling`.
    from ..inference import GateSetting, check_quantile

    numbers = [None if x is None else limits.check(x) for x, limits in ((strength, STRENGTH), (quantile, QUANTILE))]
    try:
        gate = GateSetting(*numbers)
        if stored is not None:
            check_quantile(gate.quantile, stored)
    except ValueError as error:
        raise LimitError(str(error)) from None
    return gate


def check_text(text: Any, name: str = "The prompt") -> str:
    """The text unchanged; raises LimitError if it contains something that no model should read."""
    if not isinstance(text, str):
        raise LimitError(f"{name} must be text.")
    if len(text) > MAX_CHARACTERS:
        raise LimitError(f"{name} has {len(text):,} characters; at most {MAX_CHARACTERS:,} can be sent.")
    for place, character in enumerate(text, start=1):
        category = unicodedata.category(character)
        if category == "Cs":
            raise LimitError(
                f"{name} has half of a character (U+{ord(character):04X}) at position {place:,}. Remove it."
            )
        if category == "Cc" and character not in ALLOWED_CONTROLS:
            code = f"U+{ord(character):04X}"
            raise LimitError(f"{name} has a control character ({code}) at position {place:,}. Remove it.")
    return text


def check_prompt(text: Any) -> str:
    """A prompt, stripped of whitespace around it."""
    prompt = check_text(text).strip()
    if not prompt:
        raise LimitError("Write a prompt first.")
    return prompt


def split_stops(text: Any) -> list[str]:
    """The stop texts, one per line, as on the page."""
    return check_text(text, "The stop text").splitlines()


def check_stops(stops: Any) -> tuple[str, ...]:
    """Check a list of texts that end an answer."""
    # A text is a sequence too, of its characters, each of which would end an answer.
    if isinstance(stops, str) or not isinstance(stops, Sequence):
        raise LimitError('Stop texts must be a list of texts, such as ["END"].')
    texts = tuple(dict.fromkeys(check_text(line, "A stop text") for line in stops if line != ""))
    if len(texts) > MAX_STOPS:
        raise LimitError(f"There are {len(texts)} stop texts; at most {MAX_STOPS} are possible.")
    if any(len(stop) > MAX_STOP_CHARACTERS for stop in texts):
        raise LimitError(f"A stop text can have at most {MAX_STOP_CHARACTERS} characters.")
    return texts


def check_sampling(stop: Any = (), longest: int | None = None, **numbers: Any) -> Sampling:
    """Sampling settings from a visitor's numbers.

    Args:
        stop: a list of stop texts.
        longest: the most tokens of an answer that this server allows; None for as many as any may.
        numbers: any of the other fields of `Sampling`.

    Raises:
        LimitError: with a sentence on the first that is not allowed.
    """
    # Torch comes with it, which takes seconds; the settings are checked before.
    from ..inference.types import Sampling

    allowed = ranges(longest)
    checked: dict[str, Any] = {name: allowed[name].check(value) for name, value in numbers.items()}
    return Sampling(**checked, stop=check_stops(stop))


def check_room(tokens: int, context_length: int) -> None:
    """Refuse a conversation that leaves no room for an answer."""
    if tokens >= context_length:
        raise LimitError(
            f"The conversation has {tokens:,} tokens; this model reads at most {context_length:,}, answer "
            "included. Shorten the prompt or start a new conversation."
        )
