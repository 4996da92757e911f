# SPDX-License-Identifier: Apache-2.0
"""Tools and tool calls, in the form of transformers' chat templates."""

from __future__ import annotations

from typing import Any

from .errors import DataError
from .parsing import as_json, parse_json


CALL_KEYS = ("tool_calls", "function_call")
TOOL = '[{"type": "function", "function": {"name": "…", "description": "…", "parameters": {…}}}]'
CALL = '{"name": "…", "arguments": {…}}'
Calls = list[dict[str, Any]]


def read_tools(value: Any, name: str, place: str) -> list[dict[str, Any]]:
    """The tools that an assistant may call; empty if there are none.

    Args:
        value: a list of them, or JSON of one.
        name: of the column.
        place: of the record.

    Raises:
        DataError: if they cannot be read.
    """
    if isinstance(value, str) and value.strip():
        value = parse_json(value, f"{place}: `{name}`", f"it must be a list of tools such as {TOOL}")
    if value in (None, "", [], {}) or (isinstance(value, str) and not value.strip()):
        return []
    if not isinstance(value, list):
        raise DataError(f"{place}: `{name}` must be a list of tools such as {TOOL}, not {as_json(value)}.")
    return [_tool(tool, f"{place}: tool {i} of `{name}`") for i, tool in enumerate(value, 1)]


def _tool(value: Any, place: str) -> dict[str, Any]:
    function = value.get("function", value) if isinstance(value, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise DataError(f"{place} must be described as in {TOOL}, not as {as_json(value)}.")
    return value if "function" in value else {"type": "function", "function": value}


def read_calls(message: dict[str, Any], place: str) -> Calls:
    """The tool calls of a message; empty if there are none.

    Raises:
        DataError: if they cannot be read.
    """
    if message.get("function_call"):
        if message.get("tool_calls"):
            raise DataError(f"{place} has both `tool_calls` and `function_call`; keep the first.")
        return [_call(message["function_call"], f"{place}: `function_call`")]
    calls = message.get("tool_calls") or []
    if isinstance(calls, str):
        calls = parse_json(calls, f"{place}: `tool_calls`", f"it must be a list of calls such as {CALL}")
    if not isinstance(calls, list):
        raise DataError(f"{place}: `tool_calls` must be a list of calls such as {CALL}, not {as_json(calls)}.")
    return [_call(call, f"{place}: call {i} of `tool_calls`") for i, call in enumerate(calls, 1)]


def call_of_function(text: str, place: str) -> dict[str, Any]:
    """The tool call in the text of a message with the role function_call.

    Raises:
        DataError: if it is none.
    """
    return _call(parse_json(text, place, f"a function_call must be written as {CALL}"), place)


def _call(value: Any, place: str) -> dict[str, Any]:
    function = value.get("function", value) if isinstance(value, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise DataError(f"{place} must be a call such as {CALL}, not {as_json(value)}.")
    arguments = function.get("arguments") or {}
    # OpenAI writes them as JSON in a text; templates want the object.
    if isinstance(arguments, str):
        arguments = parse_json(arguments, f"{place}: `arguments`", "they must be one JSON object")
    if not isinstance(arguments, dict):
        raise DataError(f"{place}: `arguments` must be an object, not {as_json(arguments)}.")
    call = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    return call | ({"id": value["id"]} if isinstance(value.get("id"), str) else {})
