# SPDX-License-Identifier: Apache-2.0
"""From data sources to conversations: files and Hub data sets in, lists of messages out, for many column layouts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from .errors import DataError
from .files import Record
from .layouts import Layout, filled, find_layout, first_of, listed
from .messages import MEDIA, NOTHING, READ, Message, check_understood, content_text
from .settings import Columns
from .sources import expand, is_file, read_source
from .tools import read_tools


__all__ = [
    "Conversation",
    "Message",
    "PlainText",
    "expand",
    "find_layout",
    "is_file",
    "read_source",
    "to_conversations",
    "unused",
]


class Conversation(NamedTuple):
    """One example: messages that end with an answer.

    Attributes:
        messages: each with `role` ("system", "user", "assistant" or "tool") and `content`.
        place: where it stands in the data.
        unlearned: the indices of answers with weight 0, on which there is no loss.
        tools: descriptions of tools, for the chat template.
        added: messages at the front that come from other columns.
    """

    messages: list[Message]
    place: str
    unlearned: frozenset[int] = frozenset()
    tools: tuple[dict[str, Any], ...] = ()
    added: int = 0

    def name(self, index: int) -> str:
        """A name by which the user finds a message in the record."""
        number = index + 1 - self.added
        return f"message {number}" if number > 0 else "the system text"


class PlainText(NamedTuple):
    """One example: plain text, all of which is learned.

    Attributes:
        text: as the model reads it.
        place: where it stands in the data.
    """

    text: str
    place: str


def to_conversations(records: Sequence[Record], columns: Columns) -> list[Conversation | PlainText]:
    """Convert records of any known layout into one form. The first record determines the layout.

    Args:
        records: from one source.
        columns: the names that the user gave for columns; the others are recognised.

    Raises:
        DataError: naming the place of the first record that does not fit.
    """
    layout = find_layout(records[0], columns)
    return [_converted(record, layout) for record in records]


def unused(records: Sequence[Record], columns: Columns) -> list[str]:
    """Columns, and keys of messages, that are not empty but are not used.

    Raises:
        DataError: if the columns are not recognised.
    """
    layout = find_layout(records[0], columns)
    names: dict[str, None] = {}
    for record in records:
        read = layout.reads(record)
        for name, value in record.fields.items():
            if name not in read:
                if value not in NOTHING:
                    names[name] = None
            elif isinstance(value, list) and name in layout.columns:
                keys = [key for m in value if isinstance(m, dict) for key, v in m.items() if v not in NOTHING]
                names |= {f"{name}[].{key}": None for key in keys if key not in READ}
    return list(names)


def _converted(record: Record, layout: Layout) -> Conversation | PlainText:
    missing = [name for name in layout.columns if name not in record.fields]
    if missing:
        raise DataError(
            f"{record.place}: there is no `{missing[0]}`, which the first record has; the columns are "
            f"{listed(record)}; give every record the same ones."
        )
    read = layout.reads(record)
    other_fields = {name: value for name, value in record.fields.items() if name not in read}
    check_understood(other_fields, f"{record.place}: it", MEDIA)
    if other_fields.get("label") is False:
        raise DataError(f"{record.place}: `label` is false, so its answer is marked as a bad one; remove the record.")
    if layout.convert is None:
        name = layout.columns[0]
        passage = PlainText(filled(record.fields[name], name, record.place), record.place)
        _check_nul(passage.text, f"{record.place}: `{name}`")
        return passage
    messages = layout.convert(record, layout)
    system = _system(record, layout)
    if system and messages[0]["role"] == "system":
        if messages[0]["content"].strip() != system[0]["content"].strip():
            raise DataError(
                f"{record.place}: `{first_of(layout.system, record)}` and the first message are two different system "
                "texts; keep one."
            )
        system = []
    messages = [*system, *messages]
    unlearned = frozenset(i for i, message in enumerate(messages) if message.pop("weight", None) == 0)
    if all(i in unlearned for i, message in enumerate(messages) if message["role"] == "assistant"):
        raise DataError(
            f"{record.place}: every answer of `{layout.columns[-1]}` has weight 0, so there is nothing to learn; give "
            "at least one of them weight 1."
        )
    tools = first_of(layout.tools, record)
    described = [] if tools is None else read_tools(record.fields[tools], tools, record.place)
    conversation = Conversation(messages, record.place, unlearned, tuple(described), len(system))
    for i, message in enumerate(messages):
        _check_nul(message["content"], f"{record.place}: {conversation.name(i)}")
    return conversation


def _system(record: Record, layout: Layout) -> list[Message]:
    name = first_of(layout.system, record)
    if name is None:
        return []
    value = record.fields[name]
    # The name that Gemini uses.
    parts = value.get("parts") if isinstance(value, dict) else None
    text = content_text(value if parts is None else parts, record.place, name)
    return [{"role": "system", "content": text}] if text.strip() else []


def _check_nul(text: str, place: str) -> None:
    if "\0" in text:
        raise DataError(f"{place} contains a NUL character, as damaged files do; remove it.")
