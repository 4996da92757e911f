# SPDX-License-Identifier: Apache-2.0
"""A sequence of tasks: accuracy after each stage, backward transfer, and one adapter for each task.

R[i][j] is the share of right answers to task j after stage i; stage 0 is the base.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from ..demo.report import Table
from ..evaluation.metrics import average_accuracy, backward_transfer, forgetting
from ..evaluation.report.markup import percent
from ..evaluation.solving import Sample
from ..evaluation.summary import BASE, fine
from .collect import Collected, Part
from .experiments import GOING_ON, alone_name, stage_name


EACH = "SLIM, an adapter for each task"
NONE = "–"


@dataclass(frozen=True)
class Stages:
    """One method from one seed.

    Attributes:
        title: of the method.
        seed: of the training.
        accuracy: R, T + 1 rows of T scores.
        general: mean score on the general tasks after each stage, T + 1.
        own: with an adapter for each task, share of the questions of each task that its own adapter answered, T.
    """

    title: str
    seed: int
    accuracy: list[list[float]]
    general: list[float]
    own: list[float] | None = None

    @property
    def metrics(self) -> dict[str, float | None]:
        """By name."""
        return {
            "average_accuracy": average_accuracy(self.accuracy),
            "backward_transfer": backward_transfer(self.accuracy),
            "forgetting": forgetting(self.accuracy),
            "general_at_end": self.general[-1],
        }


def stages_of(found: Collected) -> list[Stages]:
    """Every method and seed whose stages are all measured."""
    made: list[Stages] = []
    for part in found.parts:
        tasks = {t.name: t.kind for t in part.evaluation.tasks}
        trained = [name for name, kind in tasks.items() if kind == "downstream"]
        known = [name for name, kind in tasks.items() if kind == "general"]
        sets = list(dict.fromkeys(c.data for c in found.experiment.contenders))
        # A set's task has the set's name at its end: demo_obqa.
        learned = [next(name for name in trained if name == one or name.endswith(f"_{one}")) for one in sets]
        for seed in sorted({cell.seed for cell in part.columns.values()}):
            for method in GOING_ON:
                names = [stage_name(method, stage) for stage in range(1, len(sets) + 1)]
                columns = _columns(part, names, seed)
                if columns is not None:
                    answers = [_always(column) for column in (BASE, *columns)]
                    title = next(c.title for c in found.experiment.contenders if c.name == names[0])
                    title = title.split(" after ")[0] + ", one adapter"
                    made.append(_stages(part, title, seed, answers, learned, known))
            columns = _columns(part, [stage_name("slim", 1), *map(alone_name, sets[1:])], seed)
            if columns is not None:
                answers = [_always(BASE), *(_widest(columns[:stage]) for stage in range(1, len(columns) + 1))]
                made.append(_stages(part, EACH, seed, answers, learned, known, columns))
    return made


def _columns(part: Part, names: Sequence[str], seed: int) -> list[str] | None:
    """The columns of contenders from one seed; None where one is missing."""
    by_name = {cell.contender.name: column for column, cell in part.columns.items() if cell.seed == seed}
    return [by_name[name] for name in names] if all(name in by_name for name in names) else None


def _always(column: str) -> Callable[[Sample], str]:
    return lambda _: column


def _widest(columns: Sequence[str]) -> Callable[[Sample], str]:
    """Which column answers: that with the smallest share of the prompt past LoRA; the earliest of equal ones."""

    def chosen(sample: Sample) -> str:
        # Nothing is recorded where the base's own answer is empty; then there is no reason to prefer an adapter.
        past = [fmean(sample["answers"][column].get("identity") or [1.0]) for column in columns]
        return columns[past.index(min(past))]

    return chosen


def _stages(
    part: Part,
    title: str,
    seed: int,
    answers: Sequence[Callable[[Sample], str]],
    learned: Sequence[str],
    known: Sequence[str],
    adapters: Sequence[str] | None = None,
) -> Stages:
    def share(task: str, column: Callable[[Sample], str]) -> float:
        return fmean(s["answers"][column(s)]["mark"] for s in fine(part.evaluation.samples[task]))

    own = None
    if adapters is not None:
        own = [
            fmean(answers[-1](s) == adapter for s in fine(part.evaluation.samples[task]))
            for task, adapter in zip(learned, adapters, strict=True)
        ]
    return Stages(
        title,
        seed,
        [[share(task, column) for task in learned] for column in answers],
        [fmean(share(task, column) for task in known) for column in answers],
        own,
    )


def sequence_data(found: Collected) -> list[dict[str, Any]]:
    """The part of the result file about stages."""
    return [
        {
            "method": one.title,
            "seed": one.seed,
            "accuracy": one.accuracy,
            "general": one.general,
            "own_adapter": one.own,
            **one.metrics,
        }
        for one in stages_of(found)
    ]


def sequence_tables(found: Collected) -> list[Table]:
    """The accuracy matrix and what follows from it, mean over the seeds."""
    by_title: dict[str, list[Stages]] = {}
    for one in stages_of(found):
        by_title.setdefault(one.title, []).append(one)
    if not by_title:
        return []
    sets = list(dict.fromkeys(c.data for c in found.experiment.contenders))
    matrix = Table(
        "Accuracy after each stage: right answers in %, mean over seeds", ("method", "after", *sets, "general")
    )
    for title, own in by_title.items():
        for stage in range(len(sets) + 1):
            cells = [fmean(one.accuracy[stage][j] for one in own) for j in range(len(sets))]
            after = sets[stage - 1] if stage else "nothing: the base"
            matrix.add(title, after, *map(percent, cells), percent(fmean(one.general[stage] for one in own)))
    end = Table(
        "After the last stage, in points, mean over seeds and the range: average accuracy, backward transfer and "
        "forgetting over the learned tasks; the general tasks; how often a task's own adapter answered",
        ("method", "seeds", "average accuracy", "backward transfer", "forgetting", "general", "own adapter"),
    )
    for title, own in by_title.items():
        metrics = [one.metrics for one in own]
        picked = [fmean(one.own) for one in own if one.own is not None]
        end.add(title, str(len(own)), *(_spread(metrics, name) for name in metrics[0]), _range(picked))
    return [matrix, end]


def _spread(metrics: Sequence[Mapping[str, float | None]], name: str) -> str:
    return _range([value for one in metrics if (value := one[name]) is not None])


def _range(values: Sequence[float]) -> str:
    if not values:
        return NONE
    mean = percent(fmean(values))
    return mean if len(values) == 1 else f"{mean} ({percent(min(values))} to {percent(max(values))})"
