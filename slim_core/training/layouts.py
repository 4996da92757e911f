# SPDX-License-Identifier: Apache-2.0
"""Which columns hold an example, and how they become messages or a plain text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from .errors import DataError
from .files import Record
from .messages import Message, check_order, read_messages
from .names import named
from .parsing import as_json, parse_json
from .settings import Columns


MESSAGES = ("messages", "conversations", "conversation")
# Question, answer, and a column that is added to the question.
PAIRS = (
    ("prompt", "completion", None),
    ("prompt", "response", None),
    ("instruction", "output", "input"),
    ("instruction", "response", "context"),
    ("question", "answer", None),
    ("question", "response", None),
    ("query", "response", None),
    ("input", "output", None),
)
# A column of the first list and one of the second are a pair too, if the record has only one of each.
QUESTIONS = ("prompt", "instruction", "question", "query", "input", "inputs", "problem", "user", "human")
ANSWERS = (
    "completion",
    "response",
    "output",
    "outputs",
    "answer",
    "solution",
    "targets",
    "target",
    "assistant",
    "gpt",
)
TEXT = "text"
# Next to `text` they show that it is a question, which training on plain text would miss.
LABELS = ("label", "labels", "target", "summary")
SYSTEM = ("system", "system_prompt", "system_message", "system_instruction", "systeminstruction")
HISTORY = "history"
TOOLS = ("tools", "functions")
MOST_LISTED = 12  # columns
NEEDED = (
    "expected are `messages`, or `conversations`, or `prompt` and `completion`, or `instruction` and `output` (with "
    "or without `input`), or `question` and `answer`, or `text`; name other columns with --prompt-column and "
    "--completion-column, --messages-column, or --text-column"
)


Converter = Callable[[Record, "Layout"], list[Message]]


class Layout(NamedTuple):
    """How a record is turned into an example.

    Attributes:
        columns: the columns that each record must have.
        convert: record and layout to messages; None for a plain text.
        input: a column whose text is added to the question, if there is one.
        system: columns of which the first that a record has is its system text.
        history: a column of earlier turns, if it is read.
        tools: columns of which the first that a record has describes tools.
    """

    columns: tuple[str, ...]
    convert: Callable[[Record, Layout], list[Message]] | None
    input: str | None = None
    system: tuple[str, ...] = SYSTEM
    history: str | None = None
    tools: tuple[str, ...] = TOOLS

    def reads(self, record: Record) -> set[str]:
        """The columns of a record that are used in the example."""
        if self.convert is None:
            return set(self.columns)
        firsts = (first_of(names, record) for names in (self.system, self.tools))
        return {*self.columns, *filter(None, (self.input, self.history, *firsts))}


def first_of(names: tuple[str, ...], record: Record) -> str | None:
    """The first of the columns that is not empty in a record."""
    return next((name for name in names if record.fields.get(name)), None)


def find_layout(record: Record, columns: Columns) -> Layout:
    """Find the columns that hold the example.

    Args:
        record: of which the columns decide.
        columns: the user's names for them; unset ones are found.

    Raises:
        DataError: if they cannot be found.
    """
    layout = _named_layout(columns)
    named = () if layout is None else (*layout.columns, layout.input)
    missing = [name for name in (*named, columns.system) if name is not None and name not in record.fields]
    if missing:
        raise DataError(
            f"{record.place}: there is no column `{missing[0]}`, which the flags name; the columns are "
            f"{listed(record)}."
        )
    layout = layout or _usual_layout(record)
    return layout if columns.system is None else layout._replace(system=(columns.system,))


def _named_layout(columns: Columns) -> Layout | None:
    if columns.text is not None:
        return Layout((columns.text,), None)
    if columns.messages is not None:
        return Layout((columns.messages,), _from_messages)
    if columns.prompt is None or columns.completion is None:
        return None
    return Layout((columns.prompt, columns.completion), _from_pair, columns.input, history=HISTORY)


def _usual_layout(record: Record) -> Layout:
    # Their names in the record, by those that are known here: `Question` is `question`.
    column_of = {name.casefold(): name for name in record.fields} | {name: name for name in record.fields}

    def layout(columns: tuple[str, ...], convert: Converter | None, more: str | None = None) -> Layout:
        system, tools = (tuple(column_of.get(name, name) for name in names) for names in (SYSTEM, TOOLS))
        named = tuple(column_of[name] for name in columns)
        history = None if convert is not _from_pair else column_of.get(HISTORY, HISTORY)
        return Layout(named, convert, None if more is None else column_of.get(more, more), system, history, tools)

    for name in MESSAGES:
        if name in column_of:
            return layout((name,), _from_messages)
    for prompt, completion, more in PAIRS:
        if {prompt, completion} <= column_of.keys():
            return layout((prompt, completion), _from_pair, more)
    talks = [name for name, value in record.fields.items() if _is_talk(value)]
    if len(talks) == 1:
        return layout((talks[0],), _from_messages)
    labels = [column_of[name] for name in LABELS if name in column_of]
    if TEXT in column_of and labels:
        text = column_of[TEXT]
        raise DataError(
            f"{record.place}: `{text}` stands beside `{labels[0]}`, so it may be a question or a text to learn; say "
            f"which with --prompt-column {text} --completion-column {labels[0]}, or --text-column {text}."
        )
    if TEXT in column_of:
        return layout((TEXT,), None)
    questions, answers = ([name for name in names if name in column_of] for names in (QUESTIONS, ANSWERS))
    if questions == ["instruction", "input"] and len(answers) == 1:
        return layout((questions[0], answers[0]), _from_pair, questions[1])
    if len(questions) == len(answers) == 1:
        return layout((questions[0], answers[0]), _from_pair)
    if {"chosen", "rejected"} <= column_of.keys():
        raise DataError(
            f"{record.place}: `{column_of['chosen']}` and `{column_of['rejected']}` are data for learning from "
            f"preferences, which is not done here; to learn the answers that were chosen, pass "
            f"{_chosen_flags(column_of, talks)}."
        )
    raise DataError(f"{record.place}: the columns are {listed(record)}; {NEEDED}.")


def _is_talk(value: Any) -> bool:
    """Whether a value is a list of messages."""
    messages = value if isinstance(value, list) else []
    return bool(messages) and all(isinstance(m, dict) and {"role", "from"} & m.keys() for m in messages)


def _chosen_flags(column_of: dict[str, str], talks: list[str]) -> str:
    if column_of["chosen"] in talks:
        return f"--messages-column {column_of['chosen']}"
    question = next((column_of[name] for name in QUESTIONS if name in column_of), "COLUMN")
    return f"--prompt-column {question} --completion-column {column_of['chosen']}"


def listed(record: Record) -> str:
    """The columns of a record, for use in a sentence."""
    names = [f"`{named(name)}`" for name in record.fields]
    more = f" and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else ""
    return f"{', '.join(names[:MOST_LISTED])}{more}" if names else "none"


def filled(value: Any, name: str, place: str) -> str:
    """A value that must be a non-empty string.

    Raises:
        DataError: if it is none.
    """
    text = _string(value, name, place)
    if not text.strip():
        raise DataError(f"{place}: `{name}` is empty; fill it in or remove the record.")
    return text


def _string(value: Any, name: str, place: str) -> str:
    if isinstance(value, str):
        return value
    actual = "empty" if value is None else f"{as_json(value)} ({type(value).__name__})"
    raise DataError(f"{place}: `{name}` must be text but is {actual}; write it as text.")


# -- messages ----------------------------------------------------------------------------------------------------


def _from_messages(record: Record, layout: Layout) -> list[Message]:
    name = layout.columns[0]
    messages = read_messages(record.fields[name], name, record.place)
    check_order(messages, f"{record.place}: `{name}`")
    return messages


def _from_pair(record: Record, layout: Layout) -> list[Message]:
    fields, place = record.fields, record.place
    prompt, completion = layout.columns
    question = _turns(fields[prompt], prompt, "user", place)
    answer = _turns(fields[completion], completion, "assistant", place)
    # Only the completion is learned, unless an answer in the prompt is marked as learned.
    question = [{"weight": 0} | m if m["role"] == "assistant" else m for m in question]
    extra = fields.get(layout.input) if layout.input is not None else None
    if extra is not None and _string(extra, str(layout.input), place).strip():
        if question[-1]["role"] != "user":
            raise DataError(
                f"{place}: `{layout.input}` is appended to a question, but `{prompt}` does not end with one."
            )
        question[-1] = question[-1] | {"content": f"{question[-1]['content']}\n\n{extra}"}
    earlier = fields.get(layout.history) if layout.history is not None else None
    messages = [*_history(earlier, f"{place}: `{layout.history}`"), *question, *answer]
    check_order(messages, f"{place}: `{prompt}` and `{completion}` together")
    return messages


def _turns(value: Any, name: str, role: str, place: str) -> list[Message]:
    if _is_talk(value):
        return read_messages(value, name, place)
    if isinstance(value, dict | list):
        raise DataError(
            f"{place}: `{name}` must be text, or a list of messages with `role` and `content`, but is "
            f"{as_json(value)}."
        )
    return [{"role": role, "content": filled(value, name, place)}]


def _history(value: Any, place: str) -> list[Message]:
    """Earlier turns, [[question, answer], …]."""
    if isinstance(value, str) and value.strip():
        value = parse_json(value, place, "it must be a list of turns such as [[question, answer], …]")
    if value is None or value in ("", []) or (isinstance(value, str) and not value.strip()):
        return []
    pairs = value if isinstance(value, list) else [value]
    messages = []
    for number, pair in enumerate(pairs, 1):
        texts = pair if isinstance(pair, list | tuple) else []
        if len(texts) != 2 or not all(isinstance(text, str) and text.strip() for text in texts):
            raise DataError(f"{place}: turn {number} must be [question, answer], two texts, not {as_json(pair)}.")
        messages += [{"role": "user", "content": texts[0]}, {"role": "assistant", "content": texts[1]}]
    return messages
