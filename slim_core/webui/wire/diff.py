# SPDX-License-Identifier: Apache-2.0
"""Word-level differences between two answers."""

from __future__ import annotations

import re
from collections.abc import Callable
from difflib import SequenceMatcher
from functools import lru_cache
from typing import Literal


Mark = Literal["same", "added", "removed"]
WORDS = re.compile(r"\s+|\w+|[^\w\s]")
# Above this, comparing words takes seconds, so whole lines are compared.
MAX_WORDS = 3000


@lru_cache(maxsize=64)  # a page asks again with every token of another answer
def differences(base: str, other: str) -> tuple[tuple[Mark, str], ...]:
    """What must be removed from `base` and added to it to get `other`.

    Returns:
        Pieces in reading order. Without the removed ones they are `other`; without the added ones, `base`.
    """
    split: Callable[[str], list[str]] = WORDS.findall
    if max(len(split(base)), len(split(other))) > MAX_WORDS:
        split = _lines
    left, right = split(base), split(other)
    pieces: list[tuple[Mark, str]] = []
    # In texts of 200 pieces and more, frequent pieces do not start a match: otherwise an answer that repeats itself,
    # as broken models write, would take cubic time.
    for kind, a, b, c, d in SequenceMatcher(None, left, right, autojunk=True).get_opcodes():
        if kind == "equal":
            pieces.append(("same", "".join(right[c:d])))
            continue
        if a < b:
            pieces.append(("removed", "".join(left[a:b])))
        if c < d:
            pieces.append(("added", "".join(right[c:d])))
    return tuple(pieces)


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)
