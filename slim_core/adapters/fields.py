# SPDX-License-Identifier: Apache-2.0
"""Readers for the fields of `adapter_config.json`. Each function reads one field or refuses it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NoReturn

from ..outside.errors import AdapterError, quoted
from ..outside.files import CONFIG
from ..outside.limits import Limits


# PEFT would treat other strings as regular expressions, which can run for hours.
PLAIN_NAME = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*\Z")
ALL_LINEAR = "all-linear"
Raw = dict[str, Any]


def refuse(field: str, what: str) -> NoReturn:
    """Raises AdapterError with a message about one field."""
    raise AdapterError(f"{CONFIG}: `{field}` {what}.")


def unset(value: Any) -> bool:
    """Whether a field counts as not set: null, false, or an empty list or object."""
    return value is None or value is False or value in ([], {})


def whole(raw: Raw, field: str, default: int, least: int, most: int) -> int:
    value = raw.get(field, default)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        refuse(field, f"is {quoted(value)}; it must be a whole number from {least} to {most}")
    return value


def positive(value: Any, field: str, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= most:
        refuse(field, f"is {quoted(value)}; it must be a number above 0 and up to {most:g}")
    return value


def flag(raw: Raw, field: str) -> bool:
    value = raw.get(field, False)
    if value is None:
        return False
    if not isinstance(value, bool):
        refuse(field, f"is {quoted(value)}; it must be true or false")
    return value


def text(raw: Raw, field: str) -> str | None:
    value = raw.get(field)
    if value is not None and not isinstance(value, str):
        refuse(field, f"is {quoted(value)}; it must be a string or null")
    return value


def one_of(raw: Raw, field: str, choices: tuple[Any, ...]) -> Any:
    value = raw.get(field)
    # Compare the type too: in Python, 1 == True.
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        listed = " or ".join("null" if choice is None else quoted(choice) for choice in choices)
        refuse(field, f"is {quoted(value)}; it must be {listed}")
    return value


def check_name(name: Any, field: str, limits: Limits) -> None:
    if not isinstance(name, str) or len(name) > limits.name_length or not PLAIN_NAME.match(name):
        refuse(
            field,
            f"has the entry {quoted(name)}; each must be a plain module name such as 'q_proj', not a regular "
            "expression",
        )


def names(raw: Raw, field: str, limits: Limits) -> list[str] | None:
    """A list of plain module names; None if unset."""
    value = raw.get(field)
    if unset(value) or value == "":
        return None
    if isinstance(value, str):
        refuse(
            field, f"is the text {quoted(value)}, which may be a regular expression; list plain module names instead"
        )
    if not isinstance(value, list):
        refuse(field, f"is {quoted(value)}; it must be a list of module names")
    check_plain_names(value, field, limits)
    return value


def check_plain_names(value: list[Any], field: str, limits: Limits) -> None:
    """Raises AdapterError if there are too many names, or one is not a plain module name."""
    if len(value) > limits.names:
        refuse(field, f"has {len(value):,} entries; at most {limits.names:,} are allowed")
    for name in value:
        check_name(name, field, limits)


def targets(raw: Raw, limits: Limits) -> list[str] | str | None:
    """`target_modules`: names, PEFT's keyword for all Linears, or None for the default."""
    value = raw.get("target_modules")
    if value is None:
        return None
    if isinstance(value, str) and value.lower() == ALL_LINEAR:
        return ALL_LINEAR
    listed = None if value == "" else names(raw, "target_modules", limits)
    if listed is None:
        refuse("target_modules", f"is empty; it must list module names such as 'q_proj', or be '{ALL_LINEAR}'")
    return listed


def layers(raw: Raw) -> list[int] | None:
    """`layers_to_transform`: block numbers; None if unset."""
    value = raw.get("layers_to_transform")
    if value is None or value == []:
        return None
    listed = value if isinstance(value, list) else [value]
    if len(listed) > 1000 or any(type(i) is not int or not 0 <= i < 10_000 for i in listed):
        refuse("layers_to_transform", f"is {quoted(value)}; it must be a list of block numbers, 0 or more")
    return listed


def layers_pattern(raw: Raw, limits: Limits) -> list[str] | None:
    value = raw.get("layers_pattern")
    if value == "":
        return None
    listed = {"layers_pattern": [value]} if isinstance(value, str) else raw
    return names(listed, "layers_pattern", limits)


def pattern(raw: Raw, field: str, limits: Limits, check: Callable[[Any, str], Any]) -> dict[str, Any]:
    """`rank_pattern` or `alpha_pattern`: a value by plain module name."""
    value = raw.get(field)
    if unset(value):
        return {}
    if not isinstance(value, dict):
        refuse(field, f"is {quoted(value)}; it must be an object of values by module name")
    if len(value) > limits.patterns:
        refuse(field, f"has {len(value):,} entries; at most {limits.patterns:,} are allowed")
    for name, entry in value.items():
        check_name(name, field, limits)
        check(entry, f"{field}[{name}]")
    return value


def token_indices(raw: Raw, limits: Limits) -> list[int] | dict[str, list[int]] | None:
    """`trainable_token_indices`: tokens of the input embedding, or by module name; None if unset."""
    field = "trainable_token_indices"
    value = raw.get(field)
    if unset(value):
        return None
    by_name = value if isinstance(value, dict) else {None: value}
    for name, tokens in by_name.items():
        if name is not None:
            check_name(name, field, limits)
        if not isinstance(tokens, list) or not 0 < len(tokens) <= limits.names:
            refuse(field, f"is {quoted(value)}; it must list from 1 to {limits.names:,} token ids")
        if any(type(token) is not int or not 0 <= token < 2**31 for token in tokens) or len({*tokens}) < len(tokens):
            refuse(field, f"is {quoted(value)}; each entry must be a token id of 0 or more, and none may appear twice")
    return value
