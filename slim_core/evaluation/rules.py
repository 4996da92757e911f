# SPDX-License-Identifier: Apache-2.0
"""Rules that an answer follows or not, checked without a model, in the manner of IFEval (Zhou and others 2023).

An instruction says what the form of an answer must be; whether it has that form can be counted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import EvaluationError


Arguments = tuple[tuple[str, int | str], ...]


@dataclass(frozen=True)
class Rule:
    """One rule.

    Attributes:
        name: one of `RULES`.
        arguments: what it asks for, by name.
    """

    name: str
    arguments: Arguments = ()

    def holds(self, text: str) -> bool:
        """Whether an answer follows the rule. An empty answer follows no rule."""
        return bool(text.strip()) and RULES[self.name].check(text, **dict(self.arguments))


@dataclass(frozen=True)
class Rules:
    """Rules, all of which an answer must follow."""

    rules: tuple[Rule, ...]

    def mark(self, text: str) -> float:
        """1.0 if all rules hold, else 0.0: IFEval's strict accuracy of prompts."""
        return float(all(rule.holds(text) for rule in self.rules))

    def share(self, text: str) -> float:
        """The share of the rules that hold, of which IFEval's accuracy of instructions is the mean."""
        return sum(rule.holds(text) for rule in self.rules) / len(self.rules)


@dataclass(frozen=True)
class _Kind:
    """A kind of rule: how it is checked, and the type of each argument."""

    check: Callable[..., bool]
    arguments: Mapping[str, type]


def words(text: str) -> list[str]:
    """The words of a text: letters and digits, with apostrophes and hyphens inside."""
    return re.findall(r"\w+(?:['’-]\w+)*", text)


def _sentences(text: str) -> int:
    return len([sentence for sentence in re.split(r"(?<=[.!?])[\"'”)]*\s+", text.strip()) if words(sentence)])


def _bullets(text: str) -> int:
    return len(re.findall(r"^\s*[-*•]\s+\S", text, re.MULTILINE))


def _paragraphs(text: str) -> int:
    return len([paragraph for paragraph in re.split(r"\n\s*\n", text.strip()) if paragraph.strip()])


def _count(text: str, word: str) -> int:
    return len(re.findall(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE))


def _is_json(text: str) -> bool:
    inside = re.fullmatch(r"\s*```(?:json)?\s*\n(.*?)\n?```\s*", text, re.DOTALL)
    try:
        value = json.loads(inside[1] if inside else text)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict | list)


def _numbered(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"^\s*(\d{1,9})[.)]\s+\S", text, re.MULTILINE)]


def _plain_end(text: str) -> str:
    return text.strip().rstrip(".!\"'”’ ").casefold()


RULES: dict[str, _Kind] = {
    "min_words": _Kind(lambda text, n: len(words(text)) >= n, {"n": int}),
    "max_words": _Kind(lambda text, n: len(words(text)) <= n, {"n": int}),
    "exact_words": _Kind(lambda text, n: len(words(text)) == n, {"n": int}),
    "min_sentences": _Kind(lambda text, n: _sentences(text) >= n, {"n": int}),
    "max_sentences": _Kind(lambda text, n: _sentences(text) <= n, {"n": int}),
    "exact_sentences": _Kind(lambda text, n: _sentences(text) == n, {"n": int}),
    "paragraphs": _Kind(lambda text, n: _paragraphs(text) == n, {"n": int}),
    "bullets": _Kind(lambda text, n: _bullets(text) == n, {"n": int}),
    "numbered_list": _Kind(lambda text, n: _numbered(text) == list(range(1, n + 1)), {"n": int}),
    "one_line": _Kind(lambda text: "\n" not in text.strip(), {}),
    "contains": _Kind(lambda text, word: _count(text, word) > 0, {"word": str}),
    "lacks": _Kind(lambda text, word: _count(text, word) == 0, {"word": str}),
    "contains_times": _Kind(lambda text, word, n: _count(text, word) == n, {"word": str, "n": int}),
    "lacks_letter": _Kind(lambda text, letter: letter.casefold() not in text.casefold(), {"letter": str}),
    "starts_with": _Kind(lambda text, phrase: text.strip().casefold().startswith(phrase.casefold()), {"phrase": str}),
    "ends_with": _Kind(lambda text, phrase: _plain_end(text).endswith(_plain_end(phrase)), {"phrase": str}),
    "lower_case": _Kind(lambda text: text == text.lower() and any(c.isalpha() for c in text), {}),
    "upper_case": _Kind(lambda text: text == text.upper() and any(c.isalpha() for c in text), {}),
    "no_commas": _Kind(lambda text: "," not in text, {}),
    "no_digits": _Kind(lambda text: not any(c.isdigit() for c in text), {}),
    "json": _Kind(_is_json, {}),
    "quoted": _Kind(lambda text: re.fullmatch(r"[\"“].+[\"”]", text.strip(), re.DOTALL) is not None, {}),
    "title": _Kind(lambda text: re.search(r"<<[^<>\n]+>>", text) is not None, {}),
    "placeholders": _Kind(lambda text, n: len(re.findall(r"\[[^\[\]\n]+\]", text)) >= n, {"n": int}),
    "sections": _Kind(
        lambda text, word, n: (
            len(re.findall(rf"^\W*{re.escape(word)} \d+\b", text, re.MULTILINE | re.IGNORECASE)) == n
        ),
        {"word": str, "n": int},
    ),
    "postscript": _Kind(lambda text: re.search(r"^\s*P\.\s?S\.", text, re.MULTILINE) is not None, {}),
}


def read_rules(value: Any, place: str) -> Rules:
    """The rules of an item.

    Args:
        value: a list of objects such as {"rule": "max_words", "n": 20}.
        place: to name it with.

    Raises:
        EvaluationError: if one is not known or lacks an argument.
    """
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise EvaluationError(f'{place}: `rules` must be a list such as [{{"rule": "max_words", "n": 20}}].')
    return Rules(tuple(_rule(rule, place) for rule in value))


def _rule(value: Any, place: str) -> Rule:
    if not isinstance(value, Mapping) or not isinstance(value.get("rule"), str):
        raise EvaluationError(f'{place}: a rule must be an object such as {{"rule": "max_words", "n": 20}}.')
    name = value["rule"]
    if name not in RULES:
        raise EvaluationError(f"{place}: there is no rule {name!r}; the rules are {', '.join(RULES)}.")
    arguments = {key: argument for key, argument in value.items() if key != "rule"}
    kinds = RULES[name].arguments
    if arguments.keys() != kinds.keys():
        takes = " and ".join(f"`{key}`" for key in kinds) or "nothing else"
        raise EvaluationError(f"{place}: the rule {name} takes {takes}, not {', '.join(arguments) or 'nothing'}.")
    for key, kind in kinds.items():
        argument = arguments[key]
        # True is an int too, but is not meant here.
        valid = bool(argument.strip()) if isinstance(argument, str) else type(argument) is int and argument >= 0
        if not (valid and isinstance(argument, kind)):
            expected = "a text" if kind is str else "a whole number from 0"
            raise EvaluationError(f"{place}: `{key}` of the rule {name} must be {expected}, not {argument!r}.")
    return Rule(name, tuple(sorted(arguments.items())))
