# SPDX-License-Identifier: Apache-2.0
"""Data sources to conversations: files and Hub data sets in, lists of messages out, whatever the columns are."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .errors import DataError, first_line
from .files import READERS, Record, Source, read_file
from .settings import Columns


Message = dict[str, Any]
ROLES = ("system", "user", "assistant")
NEEDED = (
    "needed are `messages`, or `prompt` and `completion`, or `instruction` and `output` (with or without `input`); "
    "name other columns with --prompt-column and --completion-column, or --messages-column"
)


class Conversation(NamedTuple):
    """One example: messages that end with an answer.

    Attributes:
        messages: each with `role` ("system", "user" or "assistant") and `content`.
        place: where it stands in the data.
        unlearned: which of the messages are answers of weight 0, that there is no loss on.
    """

    messages: list[Message]
    place: str
    unlearned: frozenset[int] = frozenset()


class Layout(NamedTuple):
    """How a record becomes a conversation.

    Attributes:
        columns: the columns it reads, the optional one last.
        convert: record to messages.
    """

    columns: tuple[str, ...]
    convert: Callable[[Record, tuple[str, ...]], list[Message]]


# -- sources -----------------------------------------------------------------------------------------------------


def read_source(name: str, *, split: str, subset: str | None, revision: str | None) -> Source:
    """Read a file, a folder that holds a data set, or a data set of the Hub.

    Args:
        name: path or Hub id.
        split: which split of a data set.
        subset: which configuration of a data set.
        revision: which version of a Hub data set: branch, tag or commit.

    Raises:
        DataError: if there is nothing to read under that name.
    """
    path = Path(name)
    if path.is_file() or (path.suffix.lower() in READERS and not path.is_dir()):
        return read_file(path)
    if not path.is_dir() and (name.count("/") > 1 or name.startswith((".", "/", "~"))):
        raise DataError(f"There is no file {name}; data files end in {', '.join(READERS)}.")
    return _read_dataset(name, split, subset, revision)


def _read_dataset(name: str, split: str, subset: str | None, revision: str | None) -> Source:
    # Slow to import, and files do not need it.
    from datasets import load_dataset

    try:
        # `datasets` runs no code of a data set since version 4.
        dataset = load_dataset(name, subset, split=split, revision=revision)
    except Exception as error:  # `datasets` raises a dozen kinds
        raise DataError(
            f"The data set {name} (split {split}) cannot be loaded: {first_line(error)}; give a data file, a Hub id "
            "such as tatsu-lab/alpaca, or another --split or --subset."
        ) from None
    if not len(dataset):
        raise DataError(f"The split {split} of {name} is empty; name another with --split.")
    shown = Path(name).name if Path(name).is_dir() else name
    records = [Record(dict(row), f"{shown}, {split} record {i}") for i, row in enumerate(dataset, 1)]
    fingerprint = {"fingerprint": dataset._fingerprint, "revision": revision, "split": split, "subset": subset}
    return Source(f"{shown}:{split}", records, 0, fingerprint)


# -- columns -----------------------------------------------------------------------------------------------------


def to_conversations(records: Sequence[Record], columns: Columns) -> list[Conversation]:
    """Bring records of any known layout into one form. The first record decides on the layout.

    Args:
        records: from one source.
        columns: the user's names for the columns; unset ones are found.

    Raises:
        DataError: naming the place of the first record that does not fit.
    """
    layout = find_layout(records[0], columns)
    return [_converted(record, layout) for record in records]


def find_layout(record: Record, columns: Columns) -> Layout:
    """Which columns hold the conversation.

    Raises:
        DataError: if they cannot be found.
    """
    named = _named_layout(columns)
    if named is not None:
        missing = [name for name in named.columns if name not in record.fields]
        if missing:
            raise DataError(
                f"{record.place}: there is no column `{missing[0]}`, which the flags name; the columns are "
                f"{_listed(record)}."
            )
        return named
    if "messages" in record.fields:
        return Layout(("messages",), _from_messages)
    if {"prompt", "completion"} <= record.fields.keys():
        return Layout(("prompt", "completion"), _from_pair)
    if {"instruction", "output"} <= record.fields.keys():
        names = ("instruction", "output", "input") if "input" in record.fields else ("instruction", "output")
        return Layout(names, _from_pair)
    raise DataError(f"{record.place}: the columns are {_listed(record)}; {NEEDED}.")


def _named_layout(columns: Columns) -> Layout | None:
    if columns.messages is not None:
        return Layout((columns.messages,), _from_messages)
    if columns.prompt is None or columns.completion is None:
        return None
    more = () if columns.input is None else (columns.input,)
    return Layout((columns.prompt, columns.completion, *more), _from_pair)


def _listed(record: Record) -> str:
    return ", ".join(f"`{name}`" for name in record.fields) or "none"


def _converted(record: Record, layout: Layout) -> Conversation:
    # The optional `input` may be left out of single records.
    missing = [name for name in layout.columns[:2] if name not in record.fields]
    if missing:
        raise DataError(
            f"{record.place}: there is no `{missing[0]}`, which the first record has; the columns are "
            f"{_listed(record)}; give every record the same ones."
        )
    messages = layout.convert(record, layout.columns)
    unlearned = frozenset(i for i, message in enumerate(messages) if message.pop("weight", None) == 0)
    return Conversation(messages, record.place, unlearned)


def _from_pair(record: Record, columns: tuple[str, ...]) -> list[Message]:
    question, answer = (_filled(record.fields[name], name, record.place) for name in columns[:2])
    extra = record.fields.get(columns[2]) if len(columns) > 2 else None
    if extra is not None and _string(extra, columns[2], record.place).strip():
        question = f"{question}\n\n{extra}"
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _string(value: Any, name: str, place: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        raise DataError(f"{place}: `{name}` is a list but must be text; put conversations in a column `messages`.")
    shown = "empty" if value is None else f"{value!r} ({type(value).__name__})"
    raise DataError(f"{place}: `{name}` must be text but is {shown}; write it as text.")


def _filled(value: Any, name: str, place: str) -> str:
    text = _string(value, name, place)
    if not text.strip():
        raise DataError(f"{place}: `{name}` is empty; fill it in or take the record out.")
    return text


# -- messages ----------------------------------------------------------------------------------------------------


def _from_messages(record: Record, columns: tuple[str, ...]) -> list[Message]:
    name, place = columns[0], record.place
    value = record.fields[name]
    if isinstance(value, str):
        # A cell of a CSV file holds the list as JSON.
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            value = None
    if not isinstance(value, list) or not value:
        raise DataError(
            f'{place}: `{name}` must be a list of messages such as [{{"role": "user", "content": "…"}}, '
            '{"role": "assistant", "content": "…"}].'
        )
    messages = [_message(m, f"{place}: message {i} of `{name}`") for i, m in enumerate(value, 1)]
    _check_order(messages, f"{place}: `{name}`")
    if all(message.get("weight") == 0 for message in messages if message["role"] == "assistant"):
        raise DataError(f"{place}: every answer of `{name}` has weight 0, so there is nothing to learn; give one 1.")
    return messages


def _message(value: Any, where: str) -> Message:
    if not isinstance(value, dict) or "role" not in value or "content" not in value:
        hint = (
            "; rename `from` to `role` and `value` to `content`" if isinstance(value, dict) and "from" in value else ""
        )
        raise DataError(f"{where} must have `role` and `content`{hint}.")
    role, content = value["role"], value["content"]
    if role not in ROLES:
        raise DataError(f"{where} has the role {role!r}; it must be one of {', '.join(ROLES)}.")
    if not isinstance(content, str) or (role != "system" and not content.strip()):
        raise DataError(f"{where} ({role}) has no text in `content`; fill it in or take the record out.")
    message = {"role": role, "content": content}
    weight = value.get("weight")
    if weight is None:
        return message
    if role != "assistant":
        raise DataError(f"{where} ({role}) has a `weight`, but only answers have one; take it out.")
    if weight not in (0, 1):
        raise DataError(f"{where} has the weight {weight!r}; it must be 1 (learned) or 0 (read, but not learned).")
    return message | {"weight": weight}


def _check_order(messages: list[Message], where: str) -> None:
    roles = [message["role"] for message in messages]
    if "system" in roles[1:]:
        raise DataError(f"{where} has a system message after the first place; move it to the front.")
    turns = roles[1:] if roles[0] == "system" else roles
    if turns[-1:] != ["assistant"]:
        raise DataError(f"{where} must end with an answer (role assistant); add one or cut what follows the last.")
    if turns != ["user", "assistant"] * (len(turns) // 2):
        raise DataError(f"{where} must alternate between user and assistant, beginning with user, not {turns}.")
