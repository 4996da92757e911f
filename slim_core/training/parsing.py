# SPDX-License-Identifier: Apache-2.0
"""JSON that strangers wrote: input that cannot be read, or would break later steps, raises one clear sentence."""

from __future__ import annotations

import json
import re
from typing import Any

from .errors import DataError


DEPTH = 64  # levels; records have a handful, and Python's own functions break at some hundreds
PYTHON = re.compile(r"[\s\[]*\{\s*'|\s*\[[\s\[]*'")
NO_ARRAY = "Expecting ["
# Names of the list in which a JSON file may hold its records.
WRAPPERS = ("data", "train", "records", "examples")


def parse_json(text: str, place: str, remedy: str) -> Any:
    """The value of a JSON text.

    Args:
        text: one JSON value.
        place: where it stands.
        remedy: what it must be; used in the message if it is not JSON.

    Raises:
        DataError: if it is not JSON, or cannot be used.
    """
    try:
        value, end = decode(text, len(text) - len(text.lstrip()), place)
        if text[end:].strip():
            raise json.JSONDecodeError("Extra data", text, end)
    except json.JSONDecodeError as error:
        if PYTHON.match(text):
            remedy = "this is how Python shows lists and dicts; write JSON with json.dumps"
        raise DataError(
            f"{place}: this is not valid JSON ({error.msg} at character {error.colno}); {remedy}."
        ) from None
    return value


def decode(text: str, position: int, place: str) -> tuple[Any, int]:
    """The JSON value that begins at a position, and its end position.

    Raises:
        json.JSONDecodeError: if there is none.
        DataError: if it is one that cannot be worked with.
    """
    try:
        value, end = _DECODER.raw_decode(text, position)
    except json.JSONDecodeError:
        raise
    except _DuplicateNameError as error:
        raise DataError(f"{place}: an object has the name {as_json(str(error))} twice; keep one of them.") from None
    except RecursionError:
        raise DataError(_too_deep(place)) from None
    except ValueError:
        # Python reads no number of more than 4,300 digits.
        raise DataError(f"{place}: a number has thousands of digits; write it as text or remove it.") from None
    _check_depth(value, place)
    _check_characters(value, text, position, end, place)
    return value, end


class _DuplicateNameError(Exception):
    """An object has a duplicate name, of which json would keep the last."""


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        raise _DuplicateNameError(next(name for name in names if names.count(name) > 1))
    return result


_DECODER = json.JSONDecoder(object_pairs_hook=_distinct)


def _check_depth(value: Any, place: str) -> None:
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > DEPTH:
            raise DataError(_too_deep(place))
        inner = [v.values() if isinstance(v, dict) else v for v in level if isinstance(v, dict | list)]
        level = [v for values in inner for v in values if isinstance(v, dict | list)]


def _too_deep(place: str) -> str:
    return f"{place}: lists and objects are nested more than {DEPTH} deep; remove that column."


def _check_characters(value: Any, text: str, position: int, end: int, place: str) -> None:
    # Only an escape can stand for half a character in a file that is UTF-8.
    if text.find("\\u", position, end) < 0:
        return
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start])[1:-1]
        raise DataError(
            f"{place}: {half} is half of a character; the other half is missing; write the whole character or remove "
            "the record."
        ) from None


def as_json(value: Any) -> str:
    """A value for use in a sentence: as JSON, the way it stands in the user's file, and at most 40 characters."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except (RecursionError, ValueError):
        text = f"a {type(value).__name__}"
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= 40 else text[:39] + "…"


# -- arrays ------------------------------------------------------------------------------------------------------


def json_items(text: str, name: str) -> list[tuple[Any, int]]:
    """The elements of a JSON array, which may be the member `data` of an object, each with the line it begins on.

    Args:
        text: the whole file.
        name: of the file.

    Raises:
        json.JSONDecodeError: if it is not such an array.
        DataError: if an element cannot be worked with, or the object has several lists.
    """
    begin = _skip(text, 0)
    if text[begin : begin + 1] == "{":
        return _wrapped(text, begin, name)
    items, end = _array(text, begin, name)
    if end < len(text):
        raise json.JSONDecodeError("Extra data", text, end)
    return items


def _wrapped(text: str, begin: int, name: str) -> list[tuple[Any, int]]:
    arrays: dict[str, list[tuple[Any, int]]] = {}
    others: list[str] = []
    position, ended = begin, False
    while not ended:
        position = _skip(text, position + 1)
        place = f"{name}, line {text.count(chr(10), 0, position) + 1}"
        key, position = decode(text, position, place)
        position = _skip(text, position)
        _expect(":", text, position)
        position = _skip(text, position + 1)
        if key in WRAPPERS and text[position : position + 1] == "[":
            arrays[key], position = _array(text, position, name)
        else:
            value, position = decode(text, position, place)
            others += [key] if isinstance(value, list) and any(isinstance(item, dict) for item in value) else []
            position = _skip(text, position)
        ended = _expect(",}", text, position) == "}"
    if not arrays or _skip(text, position + 1) < len(text):
        raise json.JSONDecodeError(NO_ARRAY, text, begin)
    lists = [*arrays, *others]
    if len(lists) > 1:
        names = " and ".join(f"`{key}`" for key in lists)
        raise DataError(f"{name} has several lists of records, {names}; put each in a file of its own.")
    return arrays[lists[0]]


def _array(text: str, position: int, name: str) -> tuple[list[tuple[Any, int]], int]:
    _expect("[", text, position)
    items: list[tuple[Any, int]] = []
    line, counted = 1, 0
    position = _skip(text, position + 1)
    ended = text[position : position + 1] == "]"
    while not ended:
        line, counted = line + text.count("\n", counted, position), position
        value, position = decode(text, position, f"{name}, line {line}")
        items.append((value, line))
        position = _skip(text, position)
        ended = _expect(",]", text, position) == "]"
        position = position if ended else _skip(text, position + 1)
    return items, _skip(text, position + 1)


def _skip(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def _expect(characters: str, text: str, position: int) -> str:
    if position >= len(text) or text[position] not in characters:
        raise json.JSONDecodeError(f"Expecting {' or '.join(characters)}", text, position)
    return text[position]
