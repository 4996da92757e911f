# SPDX-License-Identifier: Apache-2.0
"""A visitor's own file of questions: read within limits, and summed up in a line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...evaluation.marking import Expected
from ...evaluation.tasks import Asking, Kind, Request, Task
from ...evaluation.tasks.user_files import EXAMPLE, read_records, task_of
from ...outside.errors import megabytes
from ...training.files import Record
from ..limits import LimitError, check_text


ENDING = ".jsonl"
# A hundred questions of a few pages each.
MOST_BYTES = 2_000_000
# Of one question: right answers, options or rules. Every option is read by every variant.
MOST_PARTS = 50
# What is read of a record.
READ = ("prompt", "messages", "system", "answer", "choices", "rules")
LISTS = ("answer", "choices", "rules")


def read_own_questions(path: Path, limit: int) -> Task:
    """A visitor's file as a task, with all of its questions.

    Args:
        path: of the file.
        limit: how many questions it may have.

    Raises:
        LimitError: if it is no such file, or something in it is not possible here.
        EvaluationError: if a question cannot be asked or marked.
    """
    if path.suffix.lower() != ENDING:
        raise LimitError(
            f"{path.name} is not a {ENDING} file; send one with a question such as {EXAMPLE} on each line."
        )
    if not path.is_file():
        raise LimitError(f"{path.name} is gone, since files are kept only for a while; choose it again.")
    if (size := path.stat().st_size) > MOST_BYTES:
        raise LimitError(
            f"{path.name} has {megabytes(size)}; a file of questions may have at most {megabytes(MOST_BYTES)}."
        )
    records = read_records(path)
    if len(records) > limit:
        raise LimitError(f"{path.name} has {len(records):,} questions; at most {limit:,} can be asked at once.")
    for record in records:
        _check(record)
    task = task_of(records, path, Asking())
    # None of the tasks that are offered here is named like a file.
    return replace(task, name=path.name)


def _check(record: Record) -> None:
    """Refuse what would be too much for others, or what no model should read."""
    fields = record.fields
    for name in LISTS:
        if isinstance(fields.get(name), list) and len(fields[name]) > MOST_PARTS:
            raise LimitError(
                f"{record.place}: `{name}` has {len(fields[name]):,} entries; write at most {MOST_PARTS}."
            )
    if fields.get("match") == "search":
        # Some patterns take Python hours, in which it does nothing else.
        raise LimitError(
            f"{record.place}: `match` is 'search', and patterns are read only by the command line; write the right "
            "answer in words, with `match` left out or 'exact'."
        )
    for name in READ:
        for text in _texts(fields.get(name)):
            check_text(text, f"{record.place}: `{name}`")


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)


def summary(task: Task) -> str:
    """What is in the file and how it is scored, such as "12 questions, answers compared as words"."""
    count = len(task.items)
    return f"{count} question{'' if count == 1 else 's'}, {_scoring(task)}"


def _scoring(task: Task) -> str:
    if task.scoring == "likelihood":
        return "the most likely option counts"
    if task.scoring == "rules":
        return "the form of answers checked by rules"
    items = [item.expected for item in task.items if isinstance(item, Request)]
    matches = {expected.match for expected in items if isinstance(expected, Expected)}
    matching = [words for match, words in (("contains", "as words"), ("exact", "exactly")) if match in matches]
    return f"answers compared {' or '.join(matching)}"


def of_kind(task: Task, kind: Any) -> Task:
    """The task, as being about what a visitor said.

    Raises:
        LimitError: if it is neither of the two.
    """
    kinds: dict[Any, Kind] = {"downstream": "downstream", "general": "general"}
    if not isinstance(kind, str) or kind not in kinds:
        raise LimitError("Say what your questions are about: what was trained, or what should not be forgotten.")
    return replace(task, kind=kinds[kind])
