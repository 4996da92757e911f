# SPDX-License-Identifier: Apache-2.0
"""LoRA and SLIM on the downstream tasks, at every learning rate of one sweep, with all else equal."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from rich.progress import Progress
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerState,
)

from ..training import TrainSettings, train
from .downstream import DOWNSTREAM_TASKS, downstream_examples
from .measure import GENERAL_TASKS, Score, mean, measure
from .pretrain import has_bf16


METHODS = ("lora", "slim")
RECORD = "validation.json"


@dataclass(frozen=True)
class Plan:
    """How the adapters are trained and compared.

    Attributes:
        rates: peak learning rates that every method is tried at.
        steps: optimiser steps of each.
        batch: examples of a step.
        examples: training examples of each downstream task.
        questions: validation questions of each task.
        r: rank of an expert; LoRA has the rank of all experts together.
        alpha: for rank r: the factor of both is alpha / r.
        targets: the Linears that both adapt.
        slim: fields of `SlimConfig`.
        seed: of the data order, the first weights and the masks.
    """

    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    steps: int = 700
    batch: int = 32
    examples: int = 8000
    questions: int = 400
    r: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ("gate_proj", "up_proj")
    slim: dict[str, Any] = field(
        default_factory=lambda: {
            "num_clusters": 64,
            "distance": "rms",
            "yield_quantile": 0.95,
            "router_scope": "block",
        }
    )
    seed: int = 42


class Task(NamedTuple):
    """What is to be tried.

    Attributes:
        method: of `METHODS`.
        rate: peak learning rate.
        base, data: folder of the base model, file of the training examples.
        folder: of the adapter.
    """

    method: str
    rate: float
    base: Path
    data: Path
    folder: Path


@dataclass(frozen=True)
class Trial:
    """One method at one rate, on validation questions.

    Attributes:
        method: of `METHODS`.
        rate: its peak learning rate.
        folder: of the adapter.
        scores: by task.
    """

    method: str
    rate: float
    folder: Path
    scores: dict[str, Score]

    @property
    def downstream(self) -> float:
        """The mean score of what it was trained on. The choice hangs on nothing else."""
        return mean(self.scores, DOWNSTREAM_TASKS)

    @property
    def general(self) -> float:
        """The mean score of what it should not forget."""
        return mean(self.scores, GENERAL_TASKS)


def write_data(path: Path, plan: Plan) -> None:
    """The training examples of all downstream tasks, mixed by the trainer, as JSON lines."""
    examples = [
        example for task in DOWNSTREAM_TASKS for example in downstream_examples(task, "train", 0, plan.examples)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps({"prompt": e.prompt, "completion": e.answer}) for e in examples)
    path.write_text("\n".join(lines) + "\n")


def settings(task: Task, plan: Plan) -> TrainSettings:
    """The training command's settings for one trial. Both methods get the same but for the rate."""
    return TrainSettings(
        base=str(task.base),
        data=[str(task.data)],
        output=task.folder,
        methods=[task.method],
        r=plan.r,
        alpha=plan.alpha,
        target_modules=list(plan.targets),
        slim=plan.slim,
        learning_rate=task.rate,
        max_steps=plan.steps,
        batch_size=plan.batch,
        bf16=has_bf16(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        validation_share=0.01,
        seed=plan.seed,
        log_every=50,
        resume=(task.folder / "training.json").is_file(),
    )


def load(base: Path, adapter: Path | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The base, with an adapter where one is given, in float32 and evaluation mode, and its tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype="float32")
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter))
    return model.eval(), AutoTokenizer.from_pretrained(base)


def run_trial(task: Task, plan: Plan, report: Callable[[int], None] = lambda step: None) -> Trial | None:
    """Train and measure one method at one rate, or read what an earlier call found.

    Args:
        task: what to do.
        plan: how.
        report: called with the number of steps done.

    Returns:
        The trial; None if it was interrupted.
    """
    record = task.folder / RECORD
    if record.is_file():
        scores = json.loads(record.read_text())
        return Trial(task.method, task.rate, task.folder, {name: Score(*score) for name, score in scores.items()})
    if train(settings(task, plan), callbacks=[_Steps(report)]).interrupted:
        return None
    scores = measure(*load(task.base, task.folder), "validation", plan.questions)
    record.write_text(json.dumps(scores, indent=1) + "\n")
    return Trial(task.method, task.rate, task.folder, scores)


class _Steps(TrainerCallback):
    """Says how many steps are done."""

    def __init__(self, report: Callable[[int], None]) -> None:
        self._report = report

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self._report(state.global_step)


def run_sweep(
    base: Path, work: Path, plan: Plan, workers: int, progress: Progress, report: Callable[[Trial], None]
) -> list[Trial] | None:
    """Every method at every rate.

    Args:
        base: folder of the base model.
        work: folder for data and adapters. What is in it from the same base and plan is used, anything else deleted.
        plan: what to do.
        workers: trials at a time, each in a process of its own. One with all threads is slower on a CPU: the model
            is small.
        progress: gets a bar for each trial.
        report: called after each trial.

    Returns:
        The trials; None if one was interrupted.
    """
    _keep_only_same(work, {"base": sha256(base / "model.safetensors"), "plan": asdict(plan) | {"rates": None}})
    data = work / "downstream.jsonl"
    write_data(data, plan)
    tasks = [Task(method, rate, base, data, work / f"{method}-{rate:g}") for rate in plan.rates for method in METHODS]
    processes = multiprocessing.get_context("spawn")
    steps = processes.Array("q", len(tasks), lock=False)
    bars = [progress.add_task(f"{task.method} at {task.rate:g}", total=plan.steps) for task in tasks]
    # What an earlier call found needs no process, which takes seconds to start.
    trials = {i: run_trial(task, plan) for i, task in enumerate(tasks) if (task.folder / RECORD).is_file()}
    for index, trial in trials.items():
        progress.update(bars[index], completed=plan.steps)
        report(trial)
    # SLIM's trials take longer. Begun last, they would leave the other workers idle at the end.
    order = sorted(range(len(tasks)), key=lambda index: (tasks[index].method == "lora", -tasks[index].rate))
    threads = max(1, torch.get_num_threads() // workers)
    with ProcessPoolExecutor(workers, processes, _begin_worker, (steps, threads)) as pool:
        waiting = {pool.submit(_work, index, tasks[index], plan): index for index in order if index not in trials}
        try:
            while waiting:
                for future in wait(waiting, timeout=1.0, return_when=FIRST_COMPLETED).done:
                    index = waiting.pop(future)
                    trials[index] = future.result()
                    if trials[index] is None:
                        return None
                    progress.update(bars[index], completed=plan.steps)
                    report(trials[index])
                for index in waiting.values():
                    progress.update(bars[index], completed=steps[index])
        finally:
            pool.shutdown(cancel_futures=True)
    return [trials[index] for index in range(len(tasks))]


_steps: Any = None  # in a worker: the steps done of all trials, shared with the process that shows them


def _begin_worker(steps: Any, threads: int) -> None:
    global _steps
    _steps = steps
    torch.set_num_threads(threads)
    # A killed parent would leave its workers behind, and they would go on with the next trials.
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _work(index: int, task: Task, plan: Plan) -> Trial | None:
    def note(step: int) -> None:
        _steps[index] = step

    return run_trial(task, plan, note)


def _keep_only_same(work: Path, identity: dict[str, Any]) -> None:
    """Delete the folder if it is about another base or another plan; note what it is about."""
    note = work / "sweep.json"
    text = json.dumps(identity, indent=1) + "\n"
    if work.is_dir() and (not note.is_file() or note.read_text() != text):
        shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)
    note.write_text(text)


def sha256(path: Path) -> str:
    """The hash of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def best(trials: list[Trial], method: str) -> Trial:
    """The method's trial with the best downstream score on validation. A tie goes to the lower rate."""
    return max((t for t in trials if t.method == method), key=lambda t: (t.downstream, -t.rate))
