# SPDX-License-Identifier: Apache-2.0
"""Strict parsing of JSON from outside."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from typing import Any

from .errors import AdapterError, quoted


# A bracket, or a whole string, so that brackets inside strings are not counted. A text without an end goes to the end
# of the file: the search must never start again inside it, or a hostile file would take quadratic time.
BRACKET_OR_TEXT = re.compile(r'[\[\]{}]|"(?:[^"\\]|\\.)*+(?:"|\\?\Z)', re.DOTALL)


# The beginnings of files that people mistake for JSON, in lower case.
OTHER_CONTENT = (
    ("version https://git-lfs", "a Git LFS pointer; fetch the file that it stands for with git lfs pull"),
    ("<", "a web page; download the file itself"),
    ("---", "YAML; write it as JSON"),
)


def read_object(data: bytes, name: str, depth: int) -> dict[str, Any]:
    """Parse `data` as one JSON object.

    Args:
        data: the bytes; the caller has bounded their number.
        name: what they are; the message begins with it.
        depth: how deep lists and objects may be nested.

    Raises:
        AdapterError: if they are not UTF-8, not JSON, no object, too deep, or hold a key twice, a number that is not
            finite, or half of a character.
    """
    text = _decoded(data, name)
    check_depth(text, name, depth)
    try:
        value = json.loads(
            text,
            object_pairs_hook=lambda pairs: _without_duplicates(pairs, name),
            parse_constant=lambda word: _refuse_number(word, name),
            parse_float=lambda digits: _finite(digits, name),
        )
    except json.JSONDecodeError as error:
        for start, description in OTHER_CONTENT:
            if text.lstrip().lower().startswith(start):
                raise AdapterError(f"{name} is not JSON but {description}.") from None
        raise AdapterError(
            f"{name} is not valid JSON: {error.msg.rstrip('.')} in line {error.lineno}, column {error.colno}."
        ) from None
    except ValueError:  # Python's own limit on the digits of a whole number
        raise AdapterError(f"{name} holds a whole number with thousands of digits.") from None
    if not isinstance(value, dict):
        raise AdapterError(f"{name} must be a JSON object {{…}}, not a {_kind(value)}.")
    _check_characters(value, name)
    return value


def _decoded(data: bytes, name: str) -> str:
    if data.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        raise AdapterError(f"{name} starts with a byte order mark; save it as UTF-8 without one.")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise AdapterError(f"{name} is not UTF-8: byte {error.start} cannot be read; save it as UTF-8.") from None


def check_depth(text: str, name: str, depth: int) -> None:
    """Refuse JSON that is nested too deeply, before parsing, since the parser is recursive.

    Args:
        text: what is to be parsed.
        name: what it is; the message begins with it.
        depth: how many levels are allowed.

    Raises:
        AdapterError: if there are more.
    """
    level = 0
    for match in BRACKET_OR_TEXT.finditer(text):
        level += {"[": 1, "{": 1, "]": -1, "}": -1}.get(match[0], 0)
        if level > depth:
            raise AdapterError(f"{name} nests lists and objects deeper than {depth} levels.")


def _without_duplicates(pairs: list[tuple[str, Any]], name: str) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise AdapterError(f"{name} has the key {quoted(twice)} twice; each key may appear only once.")
    return result


def _refuse_number(word: str, name: str) -> float:
    raise AdapterError(f"{name} holds the number {quoted(word)}; numbers must be finite.")


def _finite(digits: str, name: str) -> float:
    number = float(digits)
    return number if math.isfinite(number) else _refuse_number(digits, name)


def _check_characters(value: dict[str, Any], name: str) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise AdapterError(f"{name} holds half of a character (a lone surrogate such as \\ud800).") from None


def _kind(value: Any) -> str:
    return {list: "list", str: "text", bool: "truth value", type(None): "null"}.get(type(value), "number")
