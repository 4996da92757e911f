# SPDX-License-Identifier: Apache-2.0
"""From nothing to the demo's weights: train the base, sweep LoRA and SLIM, choose, measure, put it in place."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..method import SlimLayer
from .chat import SINGLE_TURN_TEMPLATE, train_tokenizer
from .measure import QUALIFYING, Score, measure
from .pretrain import Pretraining, Recipe
from .pretrain import Progress as Done
from .sweep import METHODS, Plan, Trial, best, run_sweep
from .verify import QUESTIONS, REPORT, WEIGHTS, save, verify


ENOUGH = 0.95  # of sums, facts and choices that the base must answer before anything is trained on it


@dataclass(frozen=True)
class Timing:
    """Minutes that the parts took: the base in all calls, the others in the last one, which may find trials done."""

    base: float
    adapters: float
    verification: float


class BuildError(Exception):
    """The demo cannot be built; the message is for people."""


def build(
    demo: Path,
    work: Path,
    recipe: Recipe,
    plan: Plan,
    console: Console,
    questions: int = QUESTIONS,
) -> dict[str, Any] | None:
    """Build the demo. What an interrupted call has done in `work` is not done again.

    Args:
        demo: where the result goes; what is there is replaced at the end, not before.
        work: folder for everything on the way.
        recipe: of the base.
        plan: of the adapters.
        console: where progress goes.
        questions: test questions of each task.

    Returns:
        The report; None if a training was interrupted.

    Raises:
        BuildError: if the base does not know its world well enough, or the result would go into `work`.
    """
    # What is there is deleted on the way, the finished demo itself included.
    if demo.resolve().is_relative_to(work.resolve()):
        raise BuildError(f"{demo} is in {work}, where the demo is built; name a folder outside of it.")
    base = build_base(work, recipe, console)
    begin = time.monotonic()
    workers = 1 if torch.cuda.is_available() else torch.get_num_threads()
    with _progress(console) as progress:
        trials = run_sweep(
            base, work / "sweep", plan, workers, progress, lambda trial: progress.console.print(_line(trial))
        )
    if trials is None:
        return None
    swept = time.monotonic()
    chosen = {method: best(trials, method) for method in METHODS}
    staged = work / "demo"
    shutil.rmtree(staged, ignore_errors=True)
    shutil.copytree(base, staged / "base")
    for method, trial in chosen.items():
        install_adapter(trial.folder, staged / method)
    with _progress(console) as progress:
        task = progress.add_task("Test questions", total=None)
        save(verify(staged, questions, report=lambda *_: progress.advance(task)), staged)
    base_seconds = json.loads((work / "base.json").read_text())["seconds"]
    timing = Timing(*(round(s / 60, 1) for s in (base_seconds, swept - begin, time.monotonic() - swept)))
    report = {
        "recipe": asdict(recipe),
        "plan": asdict(plan),
        "validation_questions": plan.questions,
        "sweep": [_row(trial) for trial in trials],
        "chosen": {method: trial.rate for method, trial in chosen.items()},
        "minutes": asdict(timing),
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
    }
    (staged / REPORT).write_text(json.dumps(report, indent=1) + "\n")
    shutil.rmtree(demo, ignore_errors=True)
    shutil.copytree(staged, demo)
    return report


def build_base(work: Path, recipe: Recipe, console: Console) -> Path:
    """Train the base and its tokenizer, unless they are there.

    Returns:
        The folder of the base, its weights in bfloat16.

    Raises:
        BuildError: if it answers too few validation questions rightly.
    """
    base, marker = work / "base", work / "base.json"
    identity = json.loads(json.dumps(asdict(recipe)))
    if marker.is_file() and json.loads(marker.read_text())["recipe"] == identity:
        return base
    tokenizer = train_tokenizer()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pretraining = Pretraining(tokenizer, recipe, work, device)
    with _progress(console) as progress:
        task = progress.add_task("Base", total=recipe.steps, completed=pretraining.step)

        def show(done: Done) -> None:
            speed = done.tokens / done.seconds
            progress.update(
                task, completed=done.step, description=f"Base: loss {done.loss:.3f}, {speed:,.0f} tokens/s"
            )

        model = pretraining.run(show)
    # Rounded before it is measured and before an adapter sees it: what ships is what was used.
    model = model.to("cpu", torch.bfloat16)
    model.save_pretrained(base)
    # Rounded to be small; it is measured, and faster on a CPU, in float32.
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"dtype": "float32"}, indent=2) + "\n")
    tokenizer.chat_template = SINGLE_TURN_TEMPLATE
    tokenizer.save_pretrained(base)
    scores = measure(model.float().eval(), tokenizer, "validation", 500, QUALIFYING)
    console.print(f"Base on validation: {_list(scores)}")
    poor = {task: score for task, score in scores.items() if score.score < ENOUGH}
    if poor:
        raise BuildError(
            f"The base answers too little: {_list(poor)}; at least {ENOUGH:.0%} is needed. Train it for more steps."
        )
    note = {"recipe": identity, "validation": scores, "seconds": pretraining.seconds}
    marker.write_text(json.dumps(note, indent=1) + "\n")
    return base


def install_adapter(source: Path, target: Path) -> None:
    """Copy an adapter's two files, its weights in bfloat16 and its base by its place in the repository."""
    target.mkdir(parents=True)
    name = Path(WEIGHTS["lora"]).name
    tensors = {
        # What is trained bears rounding. Statistics, counts and masks are not trained.
        key: tensor.to(torch.bfloat16) if is_trained(key, tensor) else tensor
        for key, tensor in load_file(source / name).items()
    }
    save_file(tensors, target / name, {"format": "pt"})
    config = json.loads((source / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "assets/demo/base"
    (target / "adapter_config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")


def is_trained(key: str, tensor: Tensor) -> bool:
    """Whether this tensor of an adapter's file is a weight, and no statistic, count or mask of SLIM."""
    return tensor.is_floating_point() and not key.endswith(SlimLayer.statistic_names)


def _row(trial: Trial) -> dict[str, Any]:
    scores = {task: round(score.score, 4) for task, score in trial.scores.items()}
    means = {"downstream": round(trial.downstream, 4), "general": round(trial.general, 4)}
    return {"method": trial.method, "rate": trial.rate} | means | {"tasks": scores}


def _line(trial: Trial) -> str:
    return (
        f"{trial.method} at {trial.rate:g}: downstream {trial.downstream:.1%}, general {trial.general:.1%} "
        f"({_list(trial.scores)})"
    )


def _list(scores: dict[str, Score]) -> str:
    return ", ".join(f"{task} {score.score:.1%}" for task, score in scores.items())


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console
    )
