# SPDX-License-Identifier: Apache-2.0
"""Test questions for the adapters of every seed, at the rates that were chosen; those of one seed ship."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import slim_core

from ..evaluation.statistics import Marks
from .install import install_adapter
from .measure import TASKS, measure
from .trial import METHODS, Trial, load
from .verify import OPEN, run_jobs


SeedMarks = Mapping[str, Marks]  # the marks by task, of each seed
STRENGTHS = {"slim at 2": 2.0, "slim at 1": 1.0, OPEN: 0.0}  # of SLIM's gate, named as in `verify`
PAIRS = (("slim", "lora"), ("slim at 2", "lora"), ("slim", "lora_half"), ("slim", OPEN))


def measure_seeds(
    base: Path,
    folder: Path,
    trials: Iterable[Trial],
    shipped: Sequence[Path],
    questions: int,
    workers: int,
    report: Callable[[str], None],
) -> dict[str, dict[str, dict[str, str]]]:
    """The test marks of the adapters that do not ship.

    Args:
        base: folder of the base model.
        folder: for the adapters, which are rounded like those that ship; replaced.
        trials: those at their method's chosen rate.
        shipped: folders of the trials whose adapters `verify` measures.
        questions: of each task.
        workers: adapters at a time, each in a process of its own.
        report: called after each adapter with its name.

    Returns:
        By method and seed the marks by task; SLIM also with the gate at other `STRENGTHS`.
    """
    shutil.rmtree(folder, ignore_errors=True)
    answering: list[tuple[str, str]] = []
    work: list[tuple[str, Callable[..., Any], tuple[Any, ...]]] = []
    for trial in (trial for trial in trials if trial.folder not in shipped):
        rounded = folder / trial.folder.name
        install_adapter(trial.folder, rounded)
        for name in (trial.method, *STRENGTHS) if trial.method == "slim" else (trial.method,):
            answering.append((name, str(trial.seed)))
            work.append((f"{name}, seed {trial.seed}", _answer, (base, rounded, STRENGTHS.get(name), questions)))
    marks: dict[str, dict[str, dict[str, str]]] = {}
    for (name, seed), measured in zip(answering, run_jobs(work, workers, report), strict=True):
        marks.setdefault(name, {})[seed] = measured
    return marks


def _answer(base: Path, adapter: Path, strength: float | None, questions: int) -> dict[str, str]:
    model, tokenizer = load(base, adapter)
    if strength is not None:
        slim_core.set_gate(model, strength=strength)
    return measure(model, tokenizer, "test", questions)


def marks_by_seed(results: Mapping[str, Any], build: Mapping[str, Any]) -> dict[str, SeedMarks]:
    """By method and seed the marks by task, with the adapters that ship.

    Args:
        results: `results.json`.
        build: `build.json`.
    """
    by_seed: dict[str, SeedMarks] = {}
    for name in (*METHODS, *STRENGTHS):
        method = "slim" if name in STRENGTHS else name
        ships = {str(build["chosen"][method]["seed"]): results["marks"][name]} if name in results["marks"] else {}
        by_seed[name] = ships | build["seeds"].get(name, {})
    return by_seed


def mean_marks(seeds: SeedMarks) -> dict[str, list[float]]:
    """By task, the share of the seeds that answered each question correctly."""
    return {
        task: [fmean(map(int, column)) for column in zip(*(marks[task] for marks in seeds.values()), strict=True)]
        for task in TASKS
    }
