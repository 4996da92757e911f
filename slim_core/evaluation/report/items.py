# SPDX-License-Identifier: Apache-2.0
"""Single items of a task, with every variant's answer and share past LoRA."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from statistics import fmean
from typing import Any

from ...base.formatting import share
from ..marking import Expected
from ..rules import Rules
from ..solving import Sample
from ..tasks import Question, Request, Task, asked
from .markup import table


SHOWN = 100  # items of a task on the page
SUMMARY = 140  # characters of a question shown before it is expanded


def items_of(task: Task, samples: Sequence[Sample], labels: Mapping[str, str]) -> Iterator[str]:
    """A task's items, with those on which the variants differ first."""
    order = sorted(samples, key=lambda sample: (not _differs(sample), sample["id"]))
    yield f"<h3>{escape(task.title)}</h3>"
    for sample in order[:SHOWN]:
        yield _item(task, sample, labels)
    if len(order) > SHOWN:
        yield f'<p class="dim">{len(order) - SHOWN:,} more are in the result file.</p>'


def _differs(sample: Sample) -> bool:
    marks = {answer.get("mark") for answer in sample.get("answers", {}).values()}
    return len(marks) > 1


def _item(task: Task, sample: Sample, labels: Mapping[str, str]) -> str:
    item = task.items[sample["id"]]
    text = asked(item)
    short = " ".join(text.split())
    short = short if len(short) <= SUMMARY else f"…{short[-SUMMARY:]}"
    if "error" in sample:
        return f"<details><summary>{escape(short)}</summary><p>{escape(sample['error'])}</p></details>"
    answers = sample["answers"]
    marks = "".join(_mark(answers[column].get("mark"), label) for column, label in labels.items())
    rows = [(label, *_row(task, sample["id"], answers[column])) for column, label in labels.items()]
    body = table(("variant", "", "answer", "KL to the base", "past LoRA, by block"), rows, text=(2,))
    return (
        f"<details><summary>{marks} {escape(short)}</summary><pre>{escape(text)}</pre>{_right(item)}{body}</details>"
    )


def _mark(mark: float | None, label: str) -> str:
    if mark is None:
        return ""
    kind, sign = ("yes", "✓") if mark else ("no", "✗")
    return f'<span class="{kind}" title="{escape(label)}">{sign}</span>'


def _right(item: Any) -> str:
    if isinstance(item, Question):
        right = [item.shown[index] for index in item.right]
    elif isinstance(item, Request) and isinstance(item.expected, Expected):
        right = list(item.expected.targets)
    elif isinstance(item, Request) and isinstance(item.expected, Rules):
        right = [
            " ".join((rule.name.replace("_", " "), *(str(value) for _, value in rule.arguments)))
            for rule in item.expected.rules
        ]
    else:
        return ""
    return f'<p class="dim">Wanted: {escape("; ".join(right))}</p>'


def _row(task: Task, number: int, answer: Mapping[str, Any]) -> tuple[str, ...]:
    item = task.items[number]
    mark = "" if "mark" not in answer else "✓" if answer["mark"] else "✗"
    if isinstance(item, Question):
        text = item.shown[answer["chosen"]]
    elif "loss" in answer:
        text = f"{answer['loss']:.3f} nats per token"
    else:
        text = answer["text"]
    shares = answer.get("identity")
    past = "" if not shares else f"{share(fmean(shares))}: " + " ".join(f"{block:.0%}" for block in shares)
    return mark, text, "" if "kl" not in answer else f"{answer['kl']:.3f}", past
