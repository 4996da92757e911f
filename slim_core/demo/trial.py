# SPDX-License-Identifier: Apache-2.0
"""One adapter: one method at one learning rate from one seed, trained on the downstream tasks and measured."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerState,
)

from ..evaluation.statistics import score
from ..training import TrainSettings, train
from ..training.resume import anew_if_moved
from .downstream import DOWNSTREAM_TASKS
from .lessons import lessons
from .measure import TASKS, Model, measure
from .pretrain import has_bf16
from .world import GENERAL_TASKS


METHODS = ("lora", "lora_half", "slim")
RECORD = "validation.json"
SCALES = (0.75, 0.5, 0.25)


@dataclass(frozen=True)
class TrialPlan:
    """How the adapters are trained and compared.

    Attributes:
        rates: peak learning rates that every method is tried at.
        seeds: of the data order, the first weights and the masks. The first one's adapters ship.
        steps: optimiser steps of each.
        batch: examples of a step.
        examples: training examples of each downstream task.
        earlier: how many turns may come before each of them.
        general_share: share of these that ask something general, from which nothing is learned.
        questions: validation questions of each task.
        r: rank of an expert; LoRA has the rank of all experts together.
        alpha: for rank r: the factor of both is alpha / r.
        targets: the Linears that LoRA and SLIM adapt.
        half: those adapted by the LoRA on half of the Linears.
        slim: fields of `SlimConfig`.
    """

    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2)
    seeds: tuple[int, ...] = (42, 43, 44)
    steps: int = 700
    batch: int = 32
    examples: int = 8000
    earlier: tuple[int, ...] = (0, 0, 1, 2)
    general_share: float = 0.6
    questions: int = 400
    r: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ("gate_proj", "up_proj")
    half: tuple[str, ...] = ("up_proj",)
    slim: dict[str, Any] = field(
        default_factory=lambda: {
            "num_clusters": 64,
            "router_scope": "block",
            "distance": "rms",
            # The default, named so that adapters and answers without a floor are not taken for the plan's.
            "variance_floor": 0.1,
        }
    )


@dataclass(frozen=True)
class Setup:
    """What is trained.

    Attributes:
        method: of `slim_core.baselines.METHODS`.
        changes: fields of `TrainSettings` that differ from the usual ones; those of "slim" are added to the usual.
    """

    method: str
    changes: Mapping[str, Any] = field(default_factory=dict)


class TrialTask(NamedTuple):
    """A trial to run.

    Attributes:
        method: of `METHODS`.
        rate: peak learning rate.
        seed: of everything that is drawn.
        base, data: folder of the base model, file of the training examples.
        folder: of the adapter.
    """

    method: str
    rate: float
    seed: int
    base: Path
    data: Path
    folder: Path


@dataclass(frozen=True)
class Trial:
    """One method at one rate from one seed, on validation questions.

    Attributes:
        method: of `METHODS`.
        rate: its peak learning rate.
        seed: of everything that was drawn.
        folder: of the adapter.
        scores: by task.
        rewound: by factor, the scores when what LoRA adds is multiplied by it. Only for LoRA from the first seed.
    """

    method: str
    rate: float
    seed: int
    folder: Path
    scores: dict[str, float]
    rewound: dict[float, dict[str, float]] = field(default_factory=dict)

    @property
    def downstream(self) -> float:
        """The mean score on the trained tasks. Only this decides the choice."""
        return downstream(self.scores)

    @property
    def general(self) -> float:
        """The mean score on what it should not forget."""
        return general(self.scores)


def downstream(scores: dict[str, float]) -> float:
    """The mean score on the trained tasks."""
    return sum(scores[task] for task in DOWNSTREAM_TASKS) / len(DOWNSTREAM_TASKS)


def general(scores: dict[str, float]) -> float:
    """The mean score on what the adapters should not forget."""
    return sum(scores[task] for task in GENERAL_TASKS) / len(GENERAL_TASKS)


def write_data(path: Path, plan: TrialPlan, tasks: Sequence[str] = DOWNSTREAM_TASKS, chat_share: float = 0.0) -> None:
    """Write the training examples of downstream tasks as JSON lines; the trainer mixes them.

    Args:
        path: of the file.
        plan: how many of which kind.
        tasks: of the downstream tasks.
        chat_share: as of `lessons`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = lessons(plan.examples, plan.earlier, plan.general_share, tasks, chat_share)
    path.write_text("\n".join(json.dumps({"messages": lesson}) for lesson in drawn) + "\n")


def settings(task: TrialTask, plan: TrialPlan) -> TrainSettings:
    """The training command's settings for one trial. The methods differ only in the rate and the Linears."""
    half: dict[str, Any] = {"target_modules": list(plan.half)} if task.method == "lora_half" else {}
    return settings_of(Setup(task.method.removesuffix("_half"), half), task, plan)


def settings_of(setup: Setup, task: TrialTask, plan: TrialPlan) -> TrainSettings:
    """The settings of a training on the demo's tasks.

    Args:
        setup: the method and what differs from the plan.
        task: rate, seed, files.
        plan: everything else.

    Raises:
        TrainingError: if the changes are not possible.
    """
    changes = dict(setup.changes)
    slim_changes = changes.pop("slim", {})
    usual: dict[str, Any] = {
        "r": plan.r,
        "alpha": plan.alpha,
        "target_modules": list(plan.targets),
        "max_steps": plan.steps,
        "batch_size": plan.batch,
        "group_by_length": True,
        "bf16": has_bf16(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        "validation_share": 0.01,
        "log_every": 50,
    }
    return TrainSettings(
        base=str(task.base),
        data=[str(task.data)],
        output=task.folder,
        methods=[setup.method],
        slim=(plan.slim if setup.method == "slim" else {}) | slim_changes,
        learning_rate=task.rate,
        seed=task.seed,
        resume=(task.folder / "training.json").is_file(),
        **(usual | changes),
    )


def load(base: Path, adapter: Path | None = None) -> tuple[Model, PreTrainedTokenizerBase]:
    """The base, with an adapter where one is given, in float32 and evaluation mode, and its tokenizer."""
    model: Model = AutoModelForCausalLM.from_pretrained(base, dtype="float32")
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter))
    return model.eval(), AutoTokenizer.from_pretrained(base)


@torch.no_grad()
def rewind(model: nn.Module, scale: float) -> None:
    """Scale what a PEFT LoRA adds: 1 leaves it unchanged, 0 removes it."""
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.mul_(scale)


def scales(task: TrialTask, plan: TrialPlan) -> tuple[float, ...]:
    """The scales at which a trial is measured; the trained one first."""
    return (1.0, *SCALES) if task.method == "lora" and task.seed == plan.seeds[0] else (1.0,)


def read_trial(task: TrialTask, plan: TrialPlan) -> Trial | None:
    """The result of an earlier call; None if anything is still to do."""
    record = _record(task)
    if any(f"{scale:g}" not in record for scale in scales(task, plan)):
        return None
    scores = {
        float(scale): {name: score(text).score for name, text in marks.items()} for scale, marks in record.items()
    }
    return Trial(task.method, task.rate, task.seed, task.folder, scores.pop(1.0), scores)


def run_trial(task: TrialTask, plan: TrialPlan, report: Callable[[int], None] = lambda step: None) -> Trial | None:
    """Train and measure one method at one rate from one seed, or continue where an earlier call was interrupted.

    Args:
        task: what to do.
        plan: how.
        report: called with the number of steps done.

    Returns:
        The trial; None if it was interrupted.
    """
    keep_only_same(task, plan)
    record = _record(task)
    if not record and train(anew_if_moved(settings(task, plan)), callbacks=[StepCounter(report)]).asked_to_end:
        return None
    for scale in scales(task, plan):
        if f"{scale:g}" not in record:
            model, tokenizer = load(task.base, task.folder)
            rewind(model, scale)
            record[f"{scale:g}"] = measure(model, tokenizer, "validation", plan.questions, TASKS)
            (task.folder / RECORD).write_text(json.dumps(record, indent=1) + "\n")
    return read_trial(task, plan)


def _record(task: TrialTask) -> dict[str, dict[str, str]]:
    """The marks by task, for each factor that was measured."""
    path = task.folder / RECORD
    return json.loads(path.read_text()) if path.is_file() else {}


def keep_only_same(task: TrialTask, plan: TrialPlan) -> None:
    """Delete the adapter's folder if it belongs to another base or other settings; note what it belongs to."""
    names = ("steps", "batch", "examples", "earlier", "general_share", "questions", "r", "alpha")
    shared = {name: getattr(plan, name) for name in names}
    train_settings = settings(task, plan)
    from_settings = {
        "targets": train_settings.target_modules,
        "slim": train_settings.slim,
        "group_by_length": train_settings.group_by_length,
    }
    identity = (
        {"base": sha256(task.base / "model.safetensors"), "rate": task.rate, "seed": task.seed}
        | shared
        | from_settings
    )
    text = json.dumps(identity, indent=1) + "\n"
    note = task.folder.parent / f"{task.folder.name}.json"
    if not note.is_file() or note.read_text() != text:
        shutil.rmtree(task.folder, ignore_errors=True)
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_text(text)


class StepCounter(TrainerCallback):
    """Reports how many steps of a training are done.

    Args:
        report: called with the number after each step.
    """

    def __init__(self, report: Callable[[int], None]) -> None:
        self._report = report

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self._report(state.global_step)


def sha256(path: Path) -> str:
    """The hash of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
