# SPDX-License-Identifier: Apache-2.0
"""A sweep: LoRA, LoRA on half the Linears and SLIM at every learning rate and from every seed, all else equal."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.progress import Progress

from .pool import worker_pool
from .trial import METHODS, Trial, TrialPlan, TrialTask, keep_only_same, read_trial, run_trial, write_data


def sweep_tasks(base: Path, work: Path, plan: TrialPlan, methods: Sequence[str] = METHODS) -> list[TrialTask]:
    """The trials of a sweep, by rate, method and seed.

    Args:
        base: folder of the base model.
        work: folder for data and adapters.
        plan: of the adapters.
        methods: of `METHODS`.
    """
    return [
        TrialTask(method, rate, seed, base, work / "downstream.jsonl", work / f"{method}-{rate:g}-{seed}")
        for rate in plan.rates
        for method in methods
        for seed in plan.seeds
    ]


def run_sweep(
    base: Path, work: Path, plan: TrialPlan, workers: int, progress: Progress, report: Callable[[Trial], None]
) -> list[Trial] | None:
    """Every method at every rate from every seed.

    Args:
        base: folder of the base model.
        work: folder for data and adapters. An adapter in it that was made the same way is used, any other replaced.
        plan: what to do.
        workers: trials at a time, each in a process of its own. One with all threads is slower on a CPU: the model
            is small.
        progress: gets a bar for each trial.
        report: called after each trial.

    Returns:
        The trials; None if one was interrupted.
    """
    tasks = sweep_tasks(base, work, plan)
    write_data(tasks[0].data, plan)
    for task in tasks:
        keep_only_same(task, plan)
    processes = multiprocessing.get_context("spawn")
    steps = processes.Array("q", len(tasks), lock=False)
    bars = [progress.add_task(f"{t.method} at {t.rate:g}, seed {t.seed}", total=plan.steps) for t in tasks]
    # Trials finished by an earlier call need no process, which takes seconds to start.
    trials = {i: trial for i, task in enumerate(tasks) if (trial := read_trial(task, plan)) is not None}
    for index, trial in trials.items():
        progress.update(bars[index], completed=plan.steps)
        report(trial)
    # SLIM's trials take longer. If they started last, the other workers would be idle at the end.
    order = sorted(range(len(tasks)), key=lambda index: (tasks[index].method != "slim", -tasks[index].rate))
    with worker_pool(workers, _begin_worker, steps) as pool:
        waiting = {pool.submit(_work, index, tasks[index], plan): index for index in order if index not in trials}
        try:
            while waiting:
                for future in wait(waiting, timeout=1.0, return_when=FIRST_COMPLETED).done:
                    index = waiting.pop(future)
                    finished = future.result()
                    if finished is None:
                        return None
                    trials[index] = finished
                    progress.update(bars[index], completed=plan.steps)
                    report(finished)
                for index in waiting.values():
                    progress.update(bars[index], completed=steps[index])
        finally:
            pool.shutdown(cancel_futures=True)
    return [trials[index] for index in range(len(tasks))]


def chosen_rate(trials: Sequence[Trial], method: str) -> float:
    """The rate at which the method's mean downstream score over the seeds is best. A tie goes to the lower one."""
    scores: dict[float, list[float]] = {}
    for trial in trials:
        if trial.method == method:
            scores.setdefault(trial.rate, []).append(trial.downstream)
    return max(scores, key=lambda rate: (fmean(scores[rate]), -rate))


def chosen(trials: Sequence[Trial], method: str, plan: TrialPlan) -> Trial:
    """The method's trial that ships: at the chosen rate, from the first seed."""
    rate = chosen_rate(trials, method)
    return next(t for t in trials if (t.method, t.rate, t.seed) == (method, rate, plan.seeds[0]))


_steps: Any = None  # in a worker: the steps done of all trials, shared with the process that shows them


def _begin_worker(steps: Any) -> None:
    global _steps
    _steps = steps


def _work(index: int, task: TrialTask, plan: TrialPlan) -> Trial | None:
    def note(step: int) -> None:
        _steps[index] = step

    return run_trial(task, plan, note)
