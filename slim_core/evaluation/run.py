# SPDX-License-Identifier: Apache-2.0
"""An evaluation from its first item to its last, through the engine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..inference import Engine
from ..many import Respondent
from .journal import Journal
from .reuse import Reuse
from .solving import Sample, solve
from .tasks import Task


@dataclass(frozen=True)
class Unit:
    """Items that are solved together. They do not depend on what is already finished, so results do not either."""

    task: Task
    number: int
    ids: tuple[int, ...]


def units_of(tasks: Sequence[Task], size: int) -> list[Unit]:
    """The units of tasks, in order.

    Args:
        tasks: what is to be solved.
        size: items of a unit.
    """
    units = []
    for task in tasks:
        places = range(len(task.items))
        units += [Unit(task, at // size, tuple(places[at : at + size])) for at in range(0, len(places), size)]
    return units


def fingerprint_of(
    engine: Engine, respondents: Sequence[Respondent], sources: dict[str, str], tasks: Sequence[Task], size: int
) -> str:
    """SHA-256 of everything that affects the samples.

    Args:
        engine: with the base.
        respondents: the variants that solve the tasks.
        sources: the hashes of each adapter, by variant, and whatever else answers come from.
        tasks: what is solved.
        size: items of a unit.
    """
    inputs: Any = (
        asdict(engine.info),
        [(r.column, r.variant.name, asdict(r.gate)) for r in respondents],
        sources,
        [(task.name, task.fingerprint) for task in tasks],
        size,
    )
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()


def run_tasks(
    engine: Engine,
    respondents: Sequence[Respondent],
    tasks: Sequence[Task],
    journal: Journal,
    size: int,
    on_progress: Callable[[Unit], None] = lambda unit: None,
    reuse: Reuse | None = None,
) -> dict[str, list[Sample]]:
    """Solve the units that are not finished yet.

    Args:
        engine: has the variants.
        respondents: the variants that solve the tasks, the base first.
        tasks: what is solved.
        journal: what is finished; each unit is added to it.
        size: items of a unit.
        on_progress: called with each finished unit, including those in the journal.
        reuse: answers of earlier evaluations, prepared for the respondents.

    Returns:
        The samples of each task, in the order of its items.

    Raises:
        EngineError: if the model fails.
        EvaluationError: if the journal cannot be written.
    """
    samples: dict[str, list[Sample]] = {task.name: [] for task in tasks}
    for unit in units_of(tasks, size):
        key = (unit.task.name, unit.number)
        if key not in journal.done:
            journal.add(*key, _solved(engine, respondents, unit, reuse or Reuse()))
        samples[unit.task.name] += journal.done[key]
        on_progress(unit)
    return samples


def _solved(engine: Engine, respondents: Sequence[Respondent], unit: Unit, reuse: Reuse) -> list[Sample]:
    known = reuse.known(unit.task, unit.ids)
    if known:
        # The base answers again: it shows whether the earlier answers are of the same model.
        fresh = solve(engine, [r for r in respondents if r.column not in known], unit.task, unit.ids)
        samples = reuse.merged(fresh, known, [r.column for r in respondents])
        if samples is not None:
            return samples
    return solve(engine, respondents, unit.task, unit.ids)


def unsolved(samples: Mapping[str, Sequence[Sample]]) -> dict[str, str]:
    """The tasks of which no item could be solved, each with a sentence that says why."""
    return {
        name: f"No item of {name} could be solved: {task_samples[0]['error']}"
        for name, task_samples in samples.items()
        if all("error" in sample for sample in task_samples)
    }
