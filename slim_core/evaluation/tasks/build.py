# SPDX-License-Identifier: Apache-2.0
"""From a task file and its records to a task."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Literal, cast, get_args

from ...base.messages import Message
from ...inference.types import Passage
from ...training.files import Record
from ..errors import EvaluationError
from ..marking import Expected, check_pattern, read_filters
from . import templates
from .task import Item, Kind, Prompt, Question, Request, Scoring, Task


# standard: as the task file says.
Form = Literal["standard", "letters", "likelihood", "written"]
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# Options that are only labels of options listed in the prompt.
LABEL = re.compile(r"\s*\(?(?:[A-Z]|\d|[a-z])\)?\.?\s*")
LONGEST = 256


@dataclass(frozen=True)
class Asking:
    """How a task's questions are asked.

    Attributes:
        form: how they are scored.
        chat: whether through the chat template; None as the form has it.
        kind: what the task is about; None as its file says.
        limit: how many questions are drawn; None for all.
        shots: solved examples before each question; None as the task file says.
    """

    form: Form = "standard"
    chat: bool | None = None
    kind: Kind | None = None
    limit: int | None = None
    shots: int | None = None


def drawn(records: Sequence[Record], limit: int | None) -> list[Record]:
    """`n` records, drawn at random but reproducibly, in their original order."""
    if limit is None or limit >= len(records):
        return list(records)
    return [records[index] for index in sorted(Random(0).sample(range(len(records)), limit))]


def build_task(
    config: Mapping[str, Any],
    name: str,
    records: Callable[[str], list[Record]],
    split: str,
    asking: Asking,
) -> Task:
    """Build a task from a task file.

    Args:
        config: of `read_config`.
        name: of the task.
        records: those of a split.
        split: that is solved.
        asking: how.

    Raises:
        EvaluationError: if a record does not fit the templates, or the form the task.
    """
    metadata = dict(config.get("metadata") or {})
    if asking.form not in ("standard", _scoring(config)):
        if "question" in metadata:
            config = _in_form(config, metadata, asking.form)
        else:
            raise EvaluationError(
                f"{name} can only be scored by {_scoring(config)}: its file does not separate question and options; "
                "leave --scoring out."
            )
    shots = config.get("num_fewshot") or 0 if asking.shots is None else asking.shots
    examples = records(config.get("fewshot_split") or config.get("training_split") or split) if shots else []
    chat = bool(metadata.get("chat")) if asking.chat is None else asking.chat
    maker = _Maker(config, name, chat, shots, examples, metadata.get("fewshot_by"))
    items = tuple(maker.item(record) for record in drawn(records(split), asking.limit))
    if not items:
        raise EvaluationError(f"{name} has no question in its split {split}.")
    generation = config.get("generation_kwargs") or {}
    return Task(
        name=name,
        title=str(metadata.get("title") or config.get("task_alias") or name),
        kind=asking.kind or _kind(metadata.get("kind", "downstream"), name),
        scoring=_scoring(config),
        items=items,
        metric="acc_norm" if _scoring(config) == "likelihood" and "acc_norm" in _metrics(config) else "acc",
        until=_until(generation.get("until"), name),
        max_new_tokens=_longest(generation, name),
        source=f"{config['dataset_path']}, {split}",
    )


def _kind(value: Any, name: str) -> Kind:
    if value not in get_args(Kind):
        raise EvaluationError(f"{name}: `kind` is {value!r}; it must be {' or '.join(get_args(Kind))}.")
    return cast("Kind", value)


def _metrics(config: Mapping[str, Any]) -> list[str]:
    return [metric["metric"] for metric in config.get("metric_list") or []]


def _scoring(config: Mapping[str, Any]) -> Scoring:
    if config.get("output_type") != "multiple_choice":
        return "written"
    options = config["doc_to_choice"]
    options = list(options.values()) if isinstance(options, Mapping) else options
    labels = isinstance(options, list) and all(
        isinstance(option, str) and LABEL.fullmatch(option) for option in options
    )
    return "letters" if labels or config.get("_letters") else "likelihood"


def _until(value: Any, name: str) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value or []
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise EvaluationError(f"{name}: `until` must be a list of strings.")
    return tuple(stops)


def _longest(generation: Mapping[str, Any], name: str) -> int:
    longest = next((generation[key] for key in ("max_gen_toks", "max_new_tokens") if key in generation), LONGEST)
    if not isinstance(longest, int) or longest < 1:
        raise EvaluationError(f"{name}: `max_gen_toks` must be a whole number of at least 1.")
    return longest


def _in_form(config: Mapping[str, Any], metadata: Mapping[str, Any], form: Form) -> dict[str, Any]:
    """The same questions, scored in another way.

    `metadata` says what is asked (`question`), which options there are (`options`), and which is right (`right`), each
    where the task's own templates do not, and `frame` the words of LLM-Adapters' fine-tuning data around them.
    """
    options, right = metadata.get("options", config["doc_to_choice"]), metadata.get("right", config["doc_to_target"])
    same = dict(config) | {"metadata": dict(metadata), "description": None, "fewshot_config": None}
    same |= {"_question": metadata["question"], "_options": options, "_right": right}
    if form == "written":
        return same | {
            "output_type": "generate_until",
            "_frame": metadata.get("frame") or {"ask": "Please choose the correct answer to the question: "},
            "generation_kwargs": {"max_gen_toks": 32},
            "metadata": dict(metadata) | {"chat": True},
        }
    return same | {"_letters": form == "letters", "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}]}


class _Maker:
    """Makes items of records.

    Args:
        config: of the task, in its form.
        name: of the task.
        chat: whether what is asked is a user's message.
        shots: solved examples before each question.
        examples: from which they are taken.
        by: column in which an example must be like the question; None for any.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        name: str,
        chat: bool,
        shots: int,
        examples: Sequence[Record],
        by: str | None,
    ) -> None:
        self._config, self._name, self._chat = config, name, chat
        self._shots, self._examples, self._by = shots, examples, by
        self._choosing = config.get("output_type") == "multiple_choice"
        # After a chat template the answer begins without a space.
        self._delimiter = "" if chat else config.get("target_delimiter", " ")
        filters = config.get("filter_list") or []
        self._filters = read_filters(filters[0].get("filter") or [], name) if filters else ()
        exact: Mapping[str, Any] = next(iter(config.get("metric_list") or []), {})
        self._ignore = tuple(check_pattern(pattern, name) for pattern in exact.get("regexes_to_ignore") or [])
        self._ignore_case = bool(exact.get("ignore_case"))
        self._ignore_punctuation = bool(exact.get("ignore_punctuation"))

    def item(self, record: Record) -> Item:
        """The item of a record."""
        place = f"{self._name}, {record.place}"
        if "_frame" in self._config:
            return self._framed(record, place)
        return self._question(record, place) if self._choosing else self._request(record, place)

    # -- as the task file says

    def _text(self, record: Record, place: str) -> Any:
        if "_question" in self._config:
            question = templates.render(self._config["_question"], record.fields, place).strip()
            if not self._config["_letters"]:
                return f"Question: {question}\nAnswer:"
            options = templates.choices(self._config["_options"], record.fields, place)
            listed = "".join(f"{letter}. {option}\n" for letter, option in zip(LETTERS, options, strict=False))
            return f"{question}\n{listed}Answer:"
        return templates.text_or_number(self._config["doc_to_text"], record.fields, place, self._choosing)

    def _options(self, record: Record, place: str) -> list[str]:
        options = templates.choices(self._config.get("_options", self._config["doc_to_choice"]), record.fields, place)
        return list(LETTERS[: len(options)]) if self._config.get("_letters") else options

    def _target(self, record: Record, place: str) -> Any:
        source = self._config.get("_right", self._config["doc_to_target"])
        return templates.target(source, record.fields, place, self._choosing or "_frame" in self._config)

    def _question(self, record: Record, place: str) -> Question:
        text, options = self._text(record, place), self._options(record, place)
        if isinstance(text, int) and not isinstance(text, bool):
            # The options are different contexts; the words after them are the same for all.
            words = f"{self._delimiter}{self._target(record, place)}"
            passages = [Passage(self._prompt(option, record), words) for option in options]
            return Question(tuple(passages), self._indices(text, options, place), tuple(options))
        prompt = self._prompt(str(text), record)
        passages = [Passage(prompt, f"{self._delimiter}{option}") for option in options]
        return Question(tuple(passages), self._indices(self._target(record, place), options, place), tuple(options))

    def _request(self, record: Record, place: str) -> Request:
        target = self._target(record, place)
        targets = tuple(map(str, target)) if isinstance(target, list | tuple) else (str(target),)
        if not targets:
            raise EvaluationError(f"{place}: there is no right answer.")
        return Request(
            self._prompt(str(self._text(record, place)), record),
            Expected(
                targets,
                self._filters,
                ignore=self._ignore,
                ignore_case=self._ignore_case,
                ignore_punctuation=self._ignore_punctuation,
            ),
        )

    def _framed(self, record: Record, place: str) -> Request:
        frame = self._config["_frame"]
        question = templates.render(self._config["_question"], record.fields, place).strip()
        options = templates.choices(self._config["_options"], record.fields, place)
        (right,) = self._indices(self._target(record, place), options, place)[:1]
        if "labels" in frame:
            labels, listed = list(frame["labels"]), ""
            question = templates.render(frame["question"], record.fields, place).strip()
        else:
            label = frame.get("label", "Answer")
            labels = [f"{label.lower()}{number}" for number in range(1, len(options) + 1)]
            listed = " ".join(f"{label.capitalize()}: {option}" for label, option in zip(labels, options, strict=True))
            listed = f"\n\n{listed}"
        prompt = f"{frame['ask']}{question}{listed}\n\nAnswer format: {frame.get('format', '/'.join(labels))}"
        pattern = rf"(?i)\b(?:{'|'.join(map(re.escape, labels))})\b"
        names = read_filters([{"function": "regex", "regex_pattern": pattern}], place)
        return Request((Message("user", prompt),), Expected((labels[right],), names, ignore_case=True))

    def _indices(self, target: Any, options: Sequence[str], place: str) -> tuple[int, ...]:
        """Which options are right."""
        indices: list[int] = []
        for answer in target if isinstance(target, list | tuple) else [target]:
            if isinstance(answer, str) and answer in options:
                answer = options.index(answer)
            # An answer key that is a letter, while the options are texts.
            elif isinstance(answer, str) and len(answer) == 1 and answer in LETTERS[: len(options)]:
                answer = LETTERS.index(answer)
            if isinstance(answer, bool):
                answer = int(answer)
            if not isinstance(answer, int) or not 0 <= answer < len(options):
                raise EvaluationError(
                    f"{place}: the right answer {answer!r} is not one of the {len(options)} options."
                )
            indices.append(answer)
        if not indices:
            raise EvaluationError(f"{place}: there is no right answer.")
        return tuple(indices)

    # -- what comes before

    def _prompt(self, text: str, record: Record) -> Prompt:
        prompt = f"{self._config.get('description') or ''}{self._solved(record)}{text}"
        return (Message("user", prompt.strip()),) if self._chat else prompt

    def _solved(self, record: Record) -> str:
        """The first solved examples, never the question itself."""
        solved: list[str] = []
        for example in self._examples:
            if len(solved) == self._shots:
                break
            like = self._by is None or example.fields.get(self._by) == record.fields.get(self._by)
            if like and example.fields != record.fields:
                solved.append(self._example(example) + self._config.get("fewshot_delimiter", "\n\n"))
        if len(solved) < self._shots:
            raise EvaluationError(
                f"{self._name}: there are {len(solved)} solved examples for {record.place}, but {self._shots} are "
                "needed."
            )
        return "".join(solved)

    def _example(self, record: Record) -> str:
        place = f"{self._name}, {record.place}"
        text, target = self._text(record, place), self._target(record, place)
        delimiter = self._config.get("target_delimiter", " ")
        if not self._choosing:
            return f"{text}{delimiter}{target[0] if isinstance(target, list | tuple) else target}"
        options = self._options(record, place)
        if isinstance(text, int):
            return f"{options[text]}{delimiter}{target}"
        return f"{text}{delimiter}{options[self._indices(target, options, place)[0]]}"
