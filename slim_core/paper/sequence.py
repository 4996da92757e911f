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
from ..evaluation.summary import BASE, solved_samples
from ..evaluation.tasks import Task, short_title
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
        own_adapter: with an adapter for each task, share of each task's questions that its own adapter answered, T.
    """

    title: str
    seed: int
    accuracy: list[list[float]]
    general: list[float]
    own_adapter: list[float] | None = None

    @property
    def metrics(self) -> dict[str, float | None]:
        """By name."""
        return {
            "average_accuracy": average_accuracy(self.accuracy),
            "backward_transfer": backward_transfer(self.accuracy),
            "forgetting": forgetting(self.accuracy),
            "general_at_end": self.general[-1],
        }


def stages_of(collected: Collected) -> list[Stages]:
    """Every method and seed whose stages are all measured."""
    stages: list[Stages] = []
    for part in collected.parts:
        general = [task.name for task in part.evaluation.tasks if task.kind == "general"]
        sets = _sets(collected)
        learned = [task.name for task in _learned(collected, part)]
        for seed in sorted({cell.seed for cell in part.columns.values()}):
            for method in GOING_ON:
                names = [stage_name(method, stage) for stage in range(1, len(sets) + 1)]
                columns = _columns(part, names, seed)
                if columns is not None:
                    answers = [_always(column) for column in (BASE, *columns)]
                    title = next(c.title for c in collected.experiment.contenders if c.name == names[0])
                    title = title.split(" after ")[0] + ", one adapter"
                    stages.append(_stages(part, title, seed, answers, learned, general))
            columns = _columns(part, [stage_name("slim", 1), *map(alone_name, sets[1:])], seed)
            if columns is not None:
                answers = [_always(BASE), *(_widest(columns[:stage]) for stage in range(1, len(columns) + 1))]
                stages.append(_stages(part, EACH, seed, answers, learned, general, columns))
    return stages


def _sets(collected: Collected) -> list[str]:
    """The sets of training examples, in the order in which they are learned."""
    return list(dict.fromkeys(contender.data for contender in collected.experiment.contenders))


def _learned(collected: Collected, part: Part) -> list[Task]:
    """The task of each set. It has the set's name at its end: demo_obqa."""
    trained = [task for task in part.evaluation.tasks if task.kind == "downstream"]
    return [
        next(task for task in trained if task.name == set_name or task.name.endswith(f"_{set_name}"))
        for set_name in _sets(collected)
    ]


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
    general: Sequence[str],
    adapters: Sequence[str] | None = None,
) -> Stages:
    def share(task: str, column: Callable[[Sample], str]) -> float:
        return fmean(s["answers"][column(s)]["mark"] for s in solved_samples(part.evaluation.samples[task]))

    own_adapter = None
    if adapters is not None:
        own_adapter = [
            fmean(answers[-1](s) == adapter for s in solved_samples(part.evaluation.samples[task]))
            for task, adapter in zip(learned, adapters, strict=True)
        ]
    return Stages(
        title,
        seed,
        [[share(task, column) for task in learned] for column in answers],
        [fmean(share(task, column) for task in general) for column in answers],
        own_adapter,
    )


def sequence_data(collected: Collected) -> list[dict[str, Any]]:
    """The part of the result file about stages."""
    return [
        {
            "method": run.title,
            "seed": run.seed,
            "accuracy": run.accuracy,
            "general": run.general,
            "own_adapter": run.own_adapter,
            **run.metrics,
        }
        for run in stages_of(collected)
    ]


def sequence_tables(collected: Collected) -> list[Table]:
    """The accuracy matrix and what follows from it, mean over the seeds."""
    by_title: dict[str, list[Stages]] = {}
    for run in stages_of(collected):
        by_title.setdefault(run.title, []).append(run)
    if not by_title:
        return []
    # A method's stages are all in one part.
    titles = [short_title(task.title) for task in _learned(collected, collected.parts[0])]
    matrix = Table(
        "Accuracy after each stage: right answers in %, mean over seeds", ("method", "after", *titles, "general")
    )
    for title, runs in by_title.items():
        for stage in range(len(titles) + 1):
            cells = [fmean(run.accuracy[stage][j] for run in runs) for j in range(len(titles))]
            after = titles[stage - 1] if stage else "nothing: the base"
            matrix.add(title, after, *map(percent, cells), percent(fmean(run.general[stage] for run in runs)))
    end = Table(
        "After the last stage, in points, mean over seeds and the range: average accuracy, backward transfer and "
        "forgetting over the learned tasks; the general tasks; how often a task's own adapter answered",
        ("method", "seeds", "average accuracy", "backward transfer", "forgetting", "general", "own adapter"),
    )
    for title, runs in by_title.items():
        metrics = [run.metrics for run in runs]
        picked = [fmean(run.own_adapter) for run in runs if run.own_adapter is not None]
        end.add(title, str(len(runs)), *(_spread(metrics, name) for name in metrics[0]), _range(picked))
    return [matrix, end]


def _spread(metrics: Sequence[Mapping[str, float | None]], name: str) -> str:
    return _range([value for by_name in metrics if (value := by_name[name]) is not None])


def _range(values: Sequence[float]) -> str:
    if not values:
        return NONE
    mean = percent(fmean(values))
    return mean if len(values) == 1 else f"{mean} ({percent(min(values))} to {percent(max(values))})"
