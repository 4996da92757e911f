# SPDX-License-Identifier: Apache-2.0
"""Build the demo's weights from scratch: train the base, sweep the methods, choose, measure, install."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from ..evaluation.statistics import score
from .cards import write_cards
from .chat import train_tokenizer
from .install import install_adapter
from .measure import QUALIFYING, measure, measure_conversations
from .pretrain import Pretraining, TrainingProgress, new_base
from .recipe import Conversations, Recipe, Training
from .seeds import measure_seeds
from .stored import REPORT, save, write_json
from .sweep import chosen, run_sweep
from .trial import METHODS, Trial, TrialPlan, downstream, general, load
from .verify import FORMAT, QUESTIONS, verify


BASE_QUESTIONS = 400  # validation questions of each task for the base
ENOUGH = 0.95  # share of sums, facts and choices that the base must answer before anything is trained on it


@dataclass(frozen=True)
class BuildTiming:
    """Minutes per part: for the base over all calls, for the others in the last call, which may reuse finished
    trials.
    """

    base: float
    adapters: float
    verification: float


class BuildError(Exception):
    """The demo cannot be built; the message is for people."""


def build(
    demo: Path,
    work: Path,
    recipe: Recipe,
    conversations: Conversations,
    plan: TrialPlan,
    console: Console,
    questions: int = QUESTIONS,
) -> dict[str, Any] | None:
    """Build the demo. Work that an interrupted call finished in `work` is not repeated.

    Args:
        demo: where the result goes; existing files are replaced only at the end.
        work: folder for everything on the way.
        recipe: of the base.
        conversations: how the base learns them.
        plan: of the adapters.
        console: where progress goes.
        questions: test questions of each task.

    Returns:
        The report; None if a training was interrupted.

    Raises:
        BuildError: if the base does not know its world well enough, or the result would go into `work`.
    """
    # Existing files are deleted during the build, including a finished demo.
    if demo.resolve().is_relative_to(work.resolve()):
        raise BuildError(f"{demo} is in {work}, where the demo is built; name a folder outside of it.")
    base = build_base(work, recipe, conversations, console)
    begin = time.monotonic()
    workers = 1 if torch.cuda.is_available() else torch.get_num_threads()
    with _progress(console) as progress:
        trials = run_sweep(
            base, work / "sweep", plan, workers, progress, lambda trial: progress.console.print(_line(trial))
        )
    if trials is None:
        return None
    swept = time.monotonic()
    best = {method: chosen(trials, method, plan) for method in METHODS}
    staged = work / "demo"
    shutil.rmtree(staged, ignore_errors=True)
    shutil.copytree(base, staged / "base")
    for method in ("lora", "slim"):
        install_adapter(best[method].folder, staged / method)
    # Those of the other seeds do not ship, but are compared.
    rates = {method: trial.rate for method, trial in best.items()}
    with _progress(console) as progress:
        task = progress.add_task("Test questions", total=None)
        seeds = measure_seeds(
            base,
            work / "seeds",
            [trial for trial in trials if trial.rate == rates[trial.method]],
            [best[method].folder for method in ("lora", "slim")],
            questions,
            workers,
            lambda name: progress.advance(task),
        )
        results = verify(staged, questions, workers=workers, report=lambda name: progress.advance(task))
    save(results, staged)
    write_cards(staged)
    notes = [json.loads((work / name).read_text()) for name in ("questions.json", "base.json")]
    seconds = sum(note["seconds"] for note in notes)
    timing = BuildTiming(*(round(s / 60, 1) for s in (seconds, swept - begin, time.monotonic() - swept)))
    report = {
        "format": FORMAT,
        "recipe": asdict(recipe),
        "conversations": asdict(conversations),
        "plan": asdict(plan),
        "base": {name: note["validation"] for name, note in zip(("questions", "conversations"), notes, strict=True)},
        "validation_questions": plan.questions,
        "sweep": [_row(trial) for trial in trials],
        "chosen": {method: {"rate": trial.rate, "seed": trial.seed} for method, trial in best.items()},
        "seeds": seeds,
        "minutes": asdict(timing),
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
    }
    write_json(staged / REPORT, report)
    shutil.rmtree(demo, ignore_errors=True)
    shutil.copytree(staged, demo)
    return report


def build_base(work: Path, recipe: Recipe, conversations: Conversations, console: Console) -> Path:
    """Train the base and its tokenizer, on single questions first and then on conversations, unless they are there.

    Returns:
        The folder of the base, its weights in bfloat16.

    Raises:
        BuildError: if it answers too few validation questions correctly.
    """
    tokenizer = train_tokenizer()
    single = _train(
        "Questions", work / "questions", tokenizer, lambda: new_base(tokenizer, recipe), (recipe,), console
    )
    return _train("Conversations", work / "base", tokenizer, lambda: _base(single), (recipe, conversations), console)


def _base(folder: Path) -> LlamaForCausalLM:
    model, _ = load(folder)
    assert isinstance(model, LlamaForCausalLM)  # as `new_base` makes it
    return model


def _train(
    title: str,
    base: Path,
    tokenizer: PreTrainedTokenizerBase,
    start: Callable[[], LlamaForCausalLM],
    trainings: Sequence[Training],
    console: Console,
) -> Path:
    """The base after the last training; `start` has the initial weights."""
    marker = base.with_suffix(".json")
    identity = json.loads(json.dumps([asdict(training) for training in trainings]))
    if marker.is_file() and json.loads(marker.read_text())["trainings"] == identity:
        return base
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pretraining = Pretraining(tokenizer, start(), trainings[-1], base.with_suffix(".safetensors"), device)
    with _progress(console) as progress:
        task = progress.add_task(title, total=trainings[-1].steps, completed=pretraining.step)

        def show(done: TrainingProgress) -> None:
            speed = done.tokens / done.seconds
            progress.update(
                task, completed=done.step, description=f"{title}: loss {done.loss:.3f}, {speed:,.0f} tokens/s"
            )

        model = pretraining.run(show)
    # Rounded before it is measured and trained on, so that the shipped weights are the ones that were used.
    model = model.to("cpu", torch.bfloat16)  # type: ignore[arg-type]  # a wrapped method, not a function
    model.save_pretrained(base)
    # Stored rounded to be small, but measured in float32, which is also faster on a CPU.
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"dtype": "float32"}, indent=2) + "\n")
    tokenizer.save_pretrained(base)
    write_json(marker, {"trainings": identity, "validation": _examine(base, console), "seconds": pretraining.seconds})
    return base


def _examine(base: Path, console: Console) -> dict[str, float]:
    """The base's scores on validation questions, singly and in conversations.

    Raises:
        BuildError: if it answers too few correctly.
    """
    model, tokenizer = load(base)
    scores = _scores(measure(model, tokenizer, "validation", BASE_QUESTIONS))
    console.print(f"{base.name} on validation: {_list(scores)}")
    poor = {task: scores[task] for task in QUALIFYING if scores[task] < ENOUGH}
    if poor:
        raise BuildError(
            f"The base answers too few questions correctly: {_list(poor)}; at least {ENOUGH:.0%} is needed. Train it "
            "for more steps."
        )
    turns = measure_conversations(model, tokenizer, "validation", BASE_QUESTIONS // 4)
    return scores | {name: result.score for name, result in turns.items()}


def _row(trial: Trial) -> dict[str, Any]:
    return {
        "method": trial.method,
        "rate": trial.rate,
        "seed": trial.seed,
        "downstream": trial.downstream,
        "general": trial.general,
        "tasks": trial.scores,
        "rewound": [
            {"scale": scale, "downstream": downstream(scores), "general": general(scores)}
            for scale, scores in trial.rewound.items()
        ],
    }


def _line(trial: Trial) -> str:
    return (
        f"{trial.method} at {trial.rate:g}, seed {trial.seed}: downstream {trial.downstream:.1%}, "
        f"general {trial.general:.1%} ({_list(trial.scores)})"
    )


def _scores(marks: dict[str, str]) -> dict[str, float]:
    return {task: score(text).score for task, text in marks.items()}


def _list(scores: dict[str, float]) -> str:
    return ", ".join(f"{task} {share:.1%}" for task, share in scores.items())


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console
    )
