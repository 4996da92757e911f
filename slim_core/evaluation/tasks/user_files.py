# SPDX-License-Identifier: Apache-2.0
"""A user's own questions: a file with right answers, options or rules, or a text whose loss is measured."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast, get_args

from ...base.messages import Message
from ...inference.types import Passage
from ...many.prompts import listed_prompt
from ...outside.errors import reason
from ...training.errors import DataError
from ...training.files import Record, read_file, utf8_text
from ..errors import EvaluationError
from ..marking import Expected, Match, check_pattern
from ..rules import read_rules
from .build import Asking, drawn
from .task import Item, Prompt, Question, Request, Scoring, Task, Text


EXAMPLE = '{"prompt": "…", "answer": "…"}'
# Characters of a passage: about a hundred tokens, and few enough for models with a short context.
PASSAGE = 400


def read_questions(path: Path, asking: Asking) -> Task:
    """A task of a file of records, see `task_of`.

    Raises:
        EvaluationError: if it cannot be read, or one cannot be asked or marked.
    """
    return task_of(read_records(path), path, asking)


def read_records(path: Path) -> list[Record]:
    """The records of a file of questions.

    Raises:
        EvaluationError: if it cannot be read.
    """
    try:
        return read_file(path, EXAMPLE).records
    except DataError as error:
        raise EvaluationError(str(error)) from None


def task_of(records: Sequence[Record], path: Path, asking: Asking) -> Task:
    """A task of records.

    Each has `prompt` or `messages`, and besides `answer` (a text or several), `choices` with the right one in
    `answer`, or `rules`. All are of one kind.

    Args:
        records: at least one.
        path: the file that they are from, by which the task is named.
        asking: how.

    Raises:
        EvaluationError: if one cannot be asked or marked.
    """
    pairs = [(_kind_of(record), record) for record in records]
    kinds = {kind for kind, _ in pairs}
    if len(kinds) > 1:
        first, place = pairs[0][0], pairs[0][1].place
        other = next(record.place for kind, record in pairs if kind != first)
        raise EvaluationError(
            f"{other} is scored differently from {place}; put records with {' and with '.join(sorted(kinds))} into "
            "separate files."
        )
    (kind,) = kinds
    make = {"answer": _answered, "choices": _chosen, "rules": _ruled}[kind]
    scoring: Scoring = {"answer": "written", "choices": "likelihood", "rules": "rules"}[kind]  # type: ignore[assignment]
    if asking.form not in ("standard", scoring):
        raise EvaluationError(f"{path.name} is scored by {scoring}; leave --scoring out.")
    if asking.shots:
        raise EvaluationError(f"{path.name} has no solved examples; leave --shots out.")
    chat = asking.chat if asking.chat is not None else True
    items = [make(record, chat) for record in drawn(records, asking.limit)]
    return Task(
        path.stem,
        path.stem.replace("_", " "),
        asking.kind or "downstream",
        scoring,
        tuple(items),
        "acc_norm" if kind == "choices" else "acc",
        source=path.name,
    )


def _kind_of(record: Record) -> str:
    fields = record.fields
    if fields.get("rules") is not None:
        return "rules"
    if fields.get("choices") is not None:
        return "choices"
    if fields.get("answer") is None:
        raise EvaluationError(
            f"{record.place} has neither `answer` nor `rules`; a record must be such as {EXAMPLE}. Prompts without "
            "right answers are for --prompts, or for Many prompts in the app."
        )
    return "answer"


def _prompt(record: Record, chat: bool) -> Prompt:
    fields = {key: record.fields[key] for key in ("prompt", "messages", "system") if record.fields.get(key)}
    try:
        listed = listed_prompt(fields, record.place)
    except DataError as error:
        raise EvaluationError(str(error)) from None
    if chat:
        return listed.messages
    if len(listed.messages) > 1:
        raise EvaluationError(f"{record.place} is a conversation, which needs the chat template; leave --no-chat out.")
    return listed.messages[0].content


def _answered(record: Record, chat: bool) -> Item:
    value, match = record.fields["answer"], record.fields.get("match") or "contains"
    targets = value if isinstance(value, list) else [value]
    # Numbers are common in such files; booleans are not texts.
    valid = all(
        isinstance(target, str | int | float) and not isinstance(target, bool) and str(target).strip()
        for target in targets
    )
    if not targets or not valid:
        raise EvaluationError(f"{record.place}: `answer` must be a string or a list of strings, not {value!r}.")
    if match not in get_args(Match):
        raise EvaluationError(f"{record.place}: `match` is {match!r}; it must be {', '.join(get_args(Match))}.")
    texts = tuple(str(target).strip() for target in targets)
    if match == "search":
        texts = tuple(check_pattern(text, record.place) for text in texts)
    return Request(_prompt(record, chat), Expected(texts, match=cast("Match", match), ignore_case=True))


def _chosen(record: Record, chat: bool) -> Item:
    options, answer = record.fields["choices"], record.fields.get("answer")
    if not isinstance(options, list) or len(options) < 2 or not all(isinstance(o, str) and o.strip() for o in options):
        raise EvaluationError(f"{record.place}: `choices` must be a list of at least two strings.")
    if len(set(options)) < len(options):
        raise EvaluationError(f"{record.place}: `choices` has the same text twice; all must differ.")
    if isinstance(answer, str) and answer in options:
        right = options.index(answer)
    elif isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(options):
        right = answer
    else:
        raise EvaluationError(
            f"{record.place}: `answer` must be one of the `choices`, or its number from 0, not {answer!r}."
        )
    prompt = _prompt(record, chat)
    passages = tuple(Passage(prompt, option if chat else f" {option}") for option in options)
    return Question(passages, (right,), tuple(options))


def _ruled(record: Record, chat: bool) -> Item:
    return Request(_prompt(record, chat), read_rules(record.fields["rules"], record.place))


def read_text(path: Path, asking: Asking) -> Task:
    """The loss on a text: passages of whole sentences, one or more from each line.

    Raises:
        EvaluationError: if it cannot be read or is empty.
    """
    try:
        text = utf8_text(path.name, path.read_bytes())
    except DataError as error:
        raise EvaluationError(str(error)) from None
    except OSError as error:
        raise EvaluationError(f"The text {path.name} cannot be read: {reason(error)}; name a readable one.") from None
    records = [Record({"text": passage}, path.name) for passage in passages_of(text)]
    items: Sequence[Any] = [Text(Passage("", record.fields["text"])) for record in drawn(records, asking.limit)]
    if not items:
        raise EvaluationError(f"The text {path.name} is empty; write some text.")
    title = f"Loss on {path.stem.replace('_', ' ')}"
    return Task(path.stem, title, asking.kind or "general", "loss", tuple(items), source=path.name)


def passages_of(text: str) -> list[str]:
    """Passages of at most `PASSAGE` characters, cut between sentences where there are any, else between words."""
    passages = []
    for line in text.split("\n"):
        rest = line.strip()
        while len(rest) > PASSAGE:
            cuts = [match.end() for match in re.finditer(r"[.!?][\"”')]*\s", rest[:PASSAGE])]
            cut = cuts[-1] if cuts else rest.rfind(" ", 0, PASSAGE)
            cut = cut if cut > 0 else PASSAGE
            passages.append(rest[:cut].strip())
            rest = rest[cut:].strip()
        passages.append(rest)
    return [passage for passage in passages if any(c.isalnum() for c in passage)]


def open_questions(name: str, prompts: Sequence[str], form: str, asking: Asking) -> Task:
    """Format capture: how many open questions are answered in the form of the trained answers.

    Args:
        name: of the task.
        prompts: questions that ask for no such form.
        form: pattern of an answer in the trained form; how many answers fit it is the score, and fewer is better.
        asking: how.

    Raises:
        EvaluationError: if the form is not a valid pattern.
    """
    expected = Expected((check_pattern(form, "--trained-form"),), match="search", ignore_case=True)
    records = [Record({"prompt": prompt}, name) for prompt in prompts]
    items = tuple(
        Request((Message("user", record.fields["prompt"]),), expected) for record in drawn(records, asking.limit)
    )
    title = "Open questions answered in the trained form"
    return Task(name, title, "general", "captured", items, max_new_tokens=64, source="written for this")
