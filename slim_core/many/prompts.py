# SPDX-License-Identifier: Apache-2.0
"""A list of prompts from a text or a file. Invalid prompts are reported with their place before anything is asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from ..base.errors import EngineError
from ..base.messages import Message, Role
from ..outside.errors import printable, reason
from ..training.errors import DataError
from ..training.files import TABLES, utf8_text
from ..training.messages import MEDIA, content_text
from ..training.parsing import as_json, json_items, parse_json


# What a question may have beside its text.
UNREAD = ("input", "context", "history", "tools", "functions", "tool_calls", "function_call", "documents", *MEDIA)
EXAMPLE = '"…", {"prompt": "…"} or {"messages": [{"role": "user", "content": "…"}]}'


@dataclass(frozen=True)
class ListedPrompt:
    """One prompt of a list.

    Attributes:
        messages: what is asked; the last message is the user's.
        place: where it stands, such as "prompts.csv, line 3".
    """

    messages: tuple[Message, ...]
    place: str

    @property
    def text(self) -> str:
        """The last message."""
        return self.messages[-1].content

    def messages_with(self, system: str) -> tuple[Message, ...]:
        """The messages, with `system` in front if they have no system message; an empty text adds none."""
        if not system or self.messages[0].role == "system":
            return self.messages
        return (Message("system", system), *self.messages)


def read_prompt_file(path: Path, limit: int | None = None) -> list[ListedPrompt]:
    """Read a file of prompts according to its extension.

    Args:
        path: of the file.
        limit: how many prompts it may have; None for any number.

    Raises:
        EngineError: with a sentence, if it cannot be read or has something in it that cannot be asked.
    """
    kind_of(path.name)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise EngineError(f"{path.name!r} cannot be read: {reason(error)}; name a file of prompts.") from None
    return read_prompts(content, path.name, limit=limit)


def read_prompts(content: bytes, name: str, kind: str | None = None, limit: int | None = None) -> list[ListedPrompt]:
    """Read the content of a file.

    Args:
        content: its bytes.
        name: to name places with.
        kind: one of `KINDS`; None for the ending of the name.
        limit: how many prompts it may have; None for any number.

    Raises:
        EngineError: with a sentence, if something in it cannot be asked.
    """
    name = printable(name)
    try:
        prompts = KINDS[kind or kind_of(name)](name, content)
    except DataError as error:
        raise EngineError(str(error)) from None
    return _counted(prompts, name, limit)


def read_lines(text: str, name: str, limit: int | None = None) -> list[ListedPrompt]:
    """One prompt per line; empty lines are skipped. For the arguments see `read_prompts`."""
    return _counted(_lines(text, name), name, limit)


def guessed(content: bytes) -> str:
    """The format of unnamed content: text that begins with { or [ is JSON, anything else one prompt per line."""
    return {b"{": ".jsonl", b"[": ".json"}.get(content.lstrip()[:1], ".txt")


def kind_of(name: str) -> str:
    """The extension of a file's name.

    Raises:
        EngineError: if no prompts are read from such a file.
    """
    kind = Path(name).suffix.lower()
    if kind not in KINDS:
        raise EngineError(f"{name!r} has an unknown file type: a file of prompts ends in {', '.join(KINDS)}.")
    return kind


def _counted(prompts: list[ListedPrompt], name: str, limit: int | None) -> list[ListedPrompt]:
    if not prompts:
        raise EngineError(f"There is no prompt in {name}: write at least one.")
    if limit is not None and len(prompts) > limit:
        raise EngineError(f"There are {len(prompts):,} prompts in {name}; at most {limit:,} can be asked at once.")
    return prompts


def _split(text: str) -> list[str]:
    # Not splitlines(), which also breaks at characters that stand inside of a line.
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _lines(text: str, name: str) -> list[ListedPrompt]:
    return [
        ListedPrompt((Message("user", line.strip()),), f"{name}, line {number}")
        for number, line in enumerate(_split(text), 1)
        if line.strip()
    ]


def _read_txt(name: str, content: bytes) -> list[ListedPrompt]:
    return _lines(utf8_text(name, content), name)


def _read_csv(name: str, content: bytes) -> list[ListedPrompt]:
    records, _ = TABLES[".csv"](name, content)
    if records and "prompt" not in records[0].fields:
        columns = ", ".join(map(as_json, records[0].fields))
        raise DataError(
            f"{name}, line 1: there is no column `prompt`, only {columns}; rename the column that has the prompts."
        )
    return [
        listed_prompt({key: value for key, value in r.fields.items() if value and key != "messages"}, r.place)
        for r in records
    ]


def _read_json(name: str, content: bytes) -> list[ListedPrompt]:
    text = utf8_text(name, content)
    try:
        items = json_items(text, name)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{name}, line {error.lineno}: this is not a JSON list ({error.msg} at character {error.colno}); write "
            f"[…], with each prompt as {EXAMPLE}."
        ) from None
    return [listed_prompt(value, f"{name}, line {line}") for value, line in items]


def _read_jsonl(name: str, content: bytes) -> list[ListedPrompt]:
    # Files that were put one behind the other keep their marks.
    lines = enumerate((line.lstrip("\ufeff") for line in _split(utf8_text(name, content))), 1)
    places = ((line, f"{name}, line {number}") for number, line in lines if line.strip())
    return [listed_prompt(parse_json(line, place, f"each line must be {EXAMPLE}"), place) for line, place in places]


KINDS: dict[str, Callable[[str, bytes], list[ListedPrompt]]] = {
    ".txt": _read_txt,
    ".csv": _read_csv,
    ".json": _read_json,
    ".jsonl": _read_jsonl,
}


def listed_prompt(value: Any, place: str) -> ListedPrompt:
    """The prompt of one element of a list, one line, or one row.

    Raises:
        DataError: with its place, if it cannot be asked.
    """
    if isinstance(value, str):
        value = {"prompt": value}
    if not isinstance(value, dict):
        raise DataError(f"{place}: a prompt must be {EXAMPLE}, not {as_json(value)}.")
    _check_read(value, place)
    if "prompt" in value and "messages" in value:
        raise DataError(f"{place}: there are both `prompt` and `messages`; keep one.")
    if "messages" in value:
        if value.get("system"):
            raise DataError(f"{place}: there are both `system` and `messages`; put the text into the first message.")
        return ListedPrompt(_messages(value["messages"], place), place)
    prompt = _words(value.get("prompt"), f"{place}: `prompt`")
    system = value.get("system")
    system_messages = () if system in (None, "") else (Message("system", _words(system, f"{place}: `system`")),)
    return ListedPrompt((*system_messages, Message("user", prompt)), place)


def _check_read(value: dict[str, Any], place: str) -> None:
    """Refuse what belongs to a question but is not asked. Others, such as right answers, may stand beside it."""
    unread = next((key for key in UNREAD if value.get(key)), None)
    if unread is not None:
        raise DataError(
            f"{place} has `{unread}`, which would not be asked; write it into the prompt or into `messages`, or "
            "remove it."
        )


def _words(value: Any, place: str) -> str:
    if value is None:
        raise DataError(f"{place} is missing or empty; write the prompt.")
    if not isinstance(value, str):
        raise DataError(f"{place} must be text, not {as_json(value)}.")
    if not value.strip():
        raise DataError(f"{place} is empty; write the prompt.")
    return value.strip()


def _messages(value: Any, place: str) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise DataError(f'{place}: `messages` must be a list such as [{{"role": "user", "content": "…"}}].')
    messages = tuple(_message(item, f"{place}: message {number}") for number, item in enumerate(value, 1))
    roles = [message.role for message in messages]
    turns = roles[1:] if roles[0] == "system" else roles
    # A question, and before it any number of questions with their answers.
    if turns[-1:] != ["user"] or any(role != ("assistant" if i % 2 else "user") for i, role in enumerate(turns)):
        raise DataError(
            f"{place}: after a system message, if there is one, `messages` must alternate between user and assistant "
            f"and end with user, not {', '.join(roles)}."
        )
    return messages


def _message(value: Any, place: str) -> Message:
    if not isinstance(value, dict):
        raise DataError(f"{place} must have `role` and `content`, but is {as_json(value)}.")
    role = value.get("role")
    if role not in get_args(Role):
        raise DataError(f"{place} has the role {as_json(role)}; it must be one of {', '.join(get_args(Role))}.")
    _check_read(value, place)
    content = value.get("content")
    text = content_text(content, place, "content") if isinstance(content, list) else content
    return Message(cast("Role", role), _words(text, f"{place}: `content`"))
