# SPDX-License-Identifier: Apache-2.0
"""LoRA and SLIM on the downstream tasks, at every learning rate of one sweep, with all else equal."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from peft import PeftModel
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..training import TrainSettings, train
from .downstream import DOWNSTREAM_TASKS, downstream_examples
from .measure import GENERAL_TASKS, Score, mean, measure


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
        slim: fields of `SlimConfig`.
        seed: of the data order, the first weights and the masks.
    """

    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2)
    steps: int = 1200
    batch: int = 32
    examples: int = 8000
    questions: int = 200
    r: int = 16
    slim: dict[str, Any] = field(default_factory=dict)
    seed: int = 42


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


def settings(method: str, rate: float, base: Path, data: Path, output: Path, plan: Plan) -> TrainSettings:
    """The training command's settings for one trial. Both methods get the same but for the method and the rate."""
    return TrainSettings(
        base=str(base),
        data=[str(data)],
        output=output,
        methods=[method],
        r=plan.r,
        slim=plan.slim,
        learning_rate=rate,
        max_steps=plan.steps,
        batch_size=plan.batch,
        validation_share=0.01,
        seed=plan.seed,
        log_every=50,
        resume=(output / "training.json").is_file(),
    )


def load(base: Path, adapter: Path | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The base, with an adapter where one is given, in float32 and evaluation mode, and its tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype="float32")
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter))
    return model.eval(), AutoTokenizer.from_pretrained(base)


def run_trial(
    method: str, rate: float, base: Path, data: Path, folder: Path, plan: Plan, console: Console
) -> Trial | None:
    """Train and measure one method at one rate, or read what an earlier call found.

    Returns:
        The trial; None if it was interrupted.
    """
    record = folder / RECORD
    if record.is_file():
        scores = json.loads(record.read_text())
        return Trial(method, rate, folder, {task: Score(*score) for task, score in scores.items()})
    if train(settings(method, rate, base, data, folder, plan), console).interrupted:
        return None
    scores = measure(*load(base, folder), "validation", plan.questions)
    record.write_text(json.dumps(scores, indent=1) + "\n")
    return Trial(method, rate, folder, scores)


def run_sweep(
    base: Path, work: Path, plan: Plan, console: Console, report: Callable[[Trial], None]
) -> list[Trial] | None:
    """Every method at every rate.

    Args:
        base: folder of the base model.
        work: folder for data and adapters. What is in it from the same base and plan is used, anything else deleted.
        plan: what to do.
        console: where the training's progress goes.
        report: called after each trial.

    Returns:
        The trials; None if one was interrupted.
    """
    _keep_only_same(work, {"base": sha256(base / "model.safetensors"), "plan": asdict(plan) | {"rates": None}})
    data = work / "downstream.jsonl"
    write_data(data, plan)
    trials = []
    for rate in plan.rates:
        for method in METHODS:
            trial = run_trial(method, rate, base, data, work / f"{method}-{rate:g}", plan, console)
            if trial is None:
                return None
            trials.append(trial)
            report(trial)
    return trials


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
