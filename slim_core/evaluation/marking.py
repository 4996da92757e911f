# SPDX-License-Identifier: Apache-2.0
"""Marking written answers: what is extracted from an answer, and what it is compared with.

Filters and the comparison are those of lm-evaluation-harness's `generate_until` tasks: its files mean the same here.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .errors import EvaluationError


NOT_FOUND = "[invalid]"
Match = Literal["exact", "contains", "search"]


@dataclass(frozen=True)
class Filter:
    """One step that extracts something from an answer.

    Attributes:
        function: "regex", "remove_whitespace" or "lowercase".
        pattern: of "regex".
        group: which of all matches counts, -1 for the last.
        fallback: what counts where nothing matches.
    """

    function: Literal["regex", "remove_whitespace", "lowercase"]
    pattern: str = ""
    group: int = 0
    fallback: str = NOT_FOUND

    def apply(self, text: str) -> str:
        """Apply the filter to a text."""
        if self.function == "remove_whitespace":
            return text.strip()
        if self.function == "lowercase":
            return text.lower()
        matches: list[str | tuple[str, ...]] = re.findall(self.pattern, text)
        if not -len(matches) <= self.group < len(matches):
            return self.fallback
        match = matches[self.group]
        if isinstance(match, tuple):
            match = next(filter(None, match), self.fallback)
        return match.strip()


@dataclass(frozen=True)
class Expected:
    """What counts as a right answer.

    Attributes:
        targets: any of these is right. For `match` "search" they are patterns.
        filters: what is taken out of the answer, step by step.
        match: "exact": the answer is the target; "contains": the target's words stand in it, one after another;
            "search": the pattern is found in it.
        ignore: patterns that are taken out of answer and target before they are compared.
        ignore_case: whether capitals count as small letters.
        ignore_punctuation: whether marks are taken out.
    """

    targets: tuple[str, ...]
    filters: tuple[Filter, ...] = ()
    match: Match = "exact"
    ignore: tuple[str, ...] = ()
    ignore_case: bool = False
    ignore_punctuation: bool = False

    def taken(self, text: str) -> str:
        """The extracted part of an answer, to be compared with the targets."""
        for step in self.filters:
            text = step.apply(text)
        return text

    def mark(self, text: str) -> float:
        """1.0 for a right answer, else 0.0."""
        answer = self.taken(text)
        return float(any(self._is(answer, target) for target in self.targets))

    def _is(self, answer: str, target: str) -> bool:
        if self.match == "search":
            return re.search(target, answer, re.IGNORECASE if self.ignore_case else 0) is not None
        if self.match == "contains":
            words = r"\s+".join(map(re.escape, target.split()))
            return re.search(rf"(?<!\w){words}(?!\w)", answer, re.IGNORECASE) is not None
        return self._normal(answer) == self._normal(target)

    def _normal(self, text: str) -> str:
        for pattern in self.ignore:
            text = re.sub(pattern, "", text)
        if self.ignore_case:
            text = text.lower()
        return text.translate(str.maketrans("", "", string.punctuation)) if self.ignore_punctuation else text


def read_filters(steps: Sequence[Any], place: str) -> tuple[Filter, ...]:
    """The filters of a task file.

    Args:
        steps: its `filter` list.
        place: to name it with.

    Raises:
        EvaluationError: if one is unknown, or its pattern is invalid.
    """
    filters = []
    for step in steps:
        if not isinstance(step, Mapping) or not isinstance(step.get("function"), str):
            raise EvaluationError(f"{place}: a filter must name its `function`, such as regex, not {step!r}.")
        function = step["function"]
        if function == "regex":
            pattern = check_pattern(step.get("regex_pattern", r"#### (\-?[0-9\.\,]+)"), place)
            group, fallback = step.get("group_select", 0), step.get("fallback", NOT_FOUND)
            if not isinstance(group, int) or not isinstance(fallback, str):
                raise EvaluationError(f"{place}: `group_select` must be a whole number and `fallback` a string.")
            filters.append(Filter("regex", pattern, group, fallback))
        elif function in ("remove_whitespace", "lowercase"):
            filters.append(Filter(function))
        elif function != "take_first":  # there is one answer, and it is taken
            raise EvaluationError(
                f"{place}: the filter {function!r} is unknown; the known ones are regex, remove_whitespace, lowercase "
                "and take_first."
            )
    return tuple(filters)


def check_pattern(pattern: Any, place: str) -> str:
    """Check that a regular expression is valid.

    Raises:
        EvaluationError: if it cannot.
    """
    try:
        re.compile(pattern)
    except (re.error, TypeError, RecursionError) as error:
        raise EvaluationError(f"{place}: {pattern!r} is not a valid regular expression ({error}).") from None
    assert isinstance(pattern, str)  # bytes cannot be written to a text file
    return pattern
