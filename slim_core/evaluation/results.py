# SPDX-License-Identifier: Apache-2.0
"""An evaluation as one JSON file: questions, answers, variants and summary."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..inference import ModelInfo
from ..many import Respondent
from .metrics import average_accuracy, backward_transfer, forgetting
from .solving import Sample
from .summary import BASE, SEEDED, Group, Pairs, seeded_method, summarise
from .tasks import Question, Request, Task, asked


FORMAT, VERSION = "slim-evaluation", 1


@dataclass(frozen=True)
class Participant:
    """A variant with where it is from.

    Attributes:
        respondent: the variant that answers.
        source: folder or Hub id of its adapter; the base's of the base.
        sha256: of the adapter's weights; empty for the base.
        config_sha256: of the adapter's configuration; empty for the base, and where it is not needed.
        method: in words, what a column with the name of its own stands for; empty where the column says it.
    """

    respondent: Respondent
    source: str
    sha256: str = ""
    config_sha256: str = ""
    method: str = ""

    @property
    def label(self) -> str:
        """Its name for people."""
        if not self.method:
            return label_of(self.respondent)
        match = SEEDED.fullmatch(self.respondent.column)
        return self.method if match is None else f"{self.method}, seed {match['seed']}"


@dataclass(frozen=True)
class Evaluation:
    """All results.

    Attributes:
        base: what it was measured on.
        participants: who answered, the base first.
        tasks: what was solved.
        samples: by task.
        groups: what they say.
        stages: by scoring, metrics of a sequence of adapters; empty where they are none.
    """

    base: ModelInfo
    participants: tuple[Participant, ...]
    tasks: tuple[Task, ...]
    samples: dict[str, list[Sample]]
    groups: tuple[Group, ...]
    stages: dict[str, dict[str, float | None]]

    @property
    def labels(self) -> dict[str, str]:
        """The names for people, by column."""
        return {p.respondent.column: p.label for p in self.participants}

    @property
    def methods(self) -> dict[str, str]:
        """What the names of methods in `Group.seeds` stand for."""
        return {
            method: p.method or method for p in self.participants if (method := seeded_method(p.respondent.column))
        }


def label_of(respondent: Respondent) -> str:
    """A variant's display name; adapters keep the name given on the command line."""
    return "Base" if respondent.column == BASE else respondent.column


def evaluated(
    base: ModelInfo,
    participants: Sequence[Participant],
    tasks: Sequence[Task],
    samples: dict[str, list[Sample]],
    sequence: bool,
    pairs: Pairs = None,
) -> Evaluation:
    """Summarise the answers.

    Args:
        base: the base.
        participants: who answered.
        tasks: what was solved.
        samples: of each task.
        sequence: whether the adapters are the stages of one training, each on the downstream task of the same place.
        pairs: which variants are compared; None for every two.
    """
    columns = [participant.respondent.column for participant in participants]
    groups = summarise(tasks, samples, columns, pairs)
    stages: dict[str, dict[str, float | None]] = {}
    for group in groups:
        if sequence and _fits(group, columns):
            stages[group.scoring] = _stages(group, columns)
    return Evaluation(base, tuple(participants), tuple(tasks), samples, tuple(groups), stages)


def _fits(group: Group, columns: Sequence[str]) -> bool:
    return sum(task.kind == "downstream" for task in group.tasks) == len(columns) - 1


def _stages(group: Group, columns: Sequence[str]) -> dict[str, float | None]:
    table = [[task.scores[column].score for task in group.tasks if task.kind == "downstream"] for column in columns]
    return {
        "average_accuracy": average_accuracy(table),
        "backward_transfer": backward_transfer(table),
        "forgetting": forgetting(table),
    }


def to_json(evaluation: Evaluation) -> str:
    """The whole of it. It has no times, so that the same evaluation gives the same file."""
    return json.dumps(as_data(evaluation), ensure_ascii=False, indent=1, allow_nan=False)


def as_data(evaluation: Evaluation) -> dict[str, Any]:
    """The content of the file."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "base": asdict(evaluation.base),
        "variants": [variant_data(participant) for participant in evaluation.participants],
        "tasks": [_task(task) for task in evaluation.tasks],
        "summary": [_plain(asdict(group)) for group in evaluation.groups],
        "stages": evaluation.stages,
        "samples": {
            task.name: [_sample(task, sample) for sample in evaluation.samples[task.name]] for task in evaluation.tasks
        },
    }


def variant_data(participant: Participant) -> dict[str, Any]:
    """What the file says about a variant."""
    respondent = participant.respondent
    return {
        **asdict(respondent.variant),
        "name": respondent.column,
        **{f"{name}_used": value for name, value in asdict(respondent.gate).items()},
        "source": participant.source,
        "sha256": participant.sha256,
        "config_sha256": participant.config_sha256,
    }


def _task(task: Task) -> dict[str, Any]:
    return {
        "name": task.name,
        "title": task.title,
        "kind": task.kind,
        "scoring": task.scoring,
        "metric": task.metric,
        "items": len(task.items),
        "chance": task.chance,
        "source": task.source,
        "sha256": task.fingerprint,
    }


def _sample(task: Task, sample: Sample) -> Sample:
    item = task.items[sample["id"]]
    data: dict[str, Any] = {"id": sample["id"], "asked": asked(item)}
    if isinstance(item, Question):
        data |= {"options": list(item.shown), "right": list(item.right)}
    elif isinstance(item, Request):
        data |= {"expected": _plain(asdict(item.expected))}
    return data | sample


def _plain(value: Any) -> Any:
    """Values for JSON, which has no infinity and writes named tuples as lists."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
