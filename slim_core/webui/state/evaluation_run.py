# SPDX-License-Identifier: Apache-2.0
"""What the server remembers of a visitor's evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ...evaluation.results import Evaluation, Participant, evaluated
from ...evaluation.run import Unit, units_of
from ...evaluation.solving import Sample
from ...evaluation.tasks import Task
from ...inference.types import ModelInfo
from .background import BackgroundRun, OneRun


# Items that are solved together: few, so that a visitor's answer is not one of too many rows, and Stop acts soon.
SIZE = 4


@dataclass(kw_only=True)
class EvaluationRun(BackgroundRun):
    """An evaluation that is running or has ended.

    Attributes:
        info: the base, by a name that may be shown.
        participants: who takes part, as the columns were when it began; the base first.
        tasks: what is solved.
        samples: what is solved of each task, from its first item on.
    """

    info: ModelInfo
    participants: tuple[Participant, ...]
    tasks: tuple[Task, ...]
    samples: dict[str, list[Sample]] = field(init=False)
    _latest: tuple[int, Evaluation | None] = field(default=(0, None), init=False)

    def __post_init__(self) -> None:
        self.samples = {task.name: [] for task in self.tasks}

    @property
    def units(self) -> list[Unit]:
        """What is solved together, task by task in turn, so that partial results say something about all of them."""
        return sorted(units_of(self.tasks, SIZE), key=lambda unit: unit.number)

    @property
    def done(self) -> int:
        """How many questions are solved."""
        return sum(map(len, self.samples.values()))

    @property
    def total(self) -> int:
        """How many there are."""
        return sum(len(task.items) for task in self.tasks)

    def evaluation(self) -> Evaluation | None:
        """What was solved so far, as an evaluation of these questions alone; None if nothing was."""
        samples = {name: list(solved) for name, solved in self.samples.items()}
        count = sum(map(len, samples.values()))
        if self._latest[0] != count:
            # Without an item that could be solved, a task has no score.
            tasks = [t for t in self.tasks if any("error" not in sample for sample in samples[t.name])]
            tasks = [replace(task, items=task.items[: len(samples[task.name])]) for task in tasks]
            samples_of_tasks = {task.name: samples[task.name] for task in tasks}
            evaluation = (
                evaluated(self.info, self.participants, tasks, samples_of_tasks, sequence=False) if tasks else None
            )
            self._latest = (count, evaluation)
        return self._latest[1]


class VisitorEvaluation(OneRun[EvaluationRun]):
    """A visitor's evaluation.

    Attributes:
        questions: the visitor's own, of an uploaded file; None without one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.questions: Task | None = None
