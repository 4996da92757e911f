# SPDX-License-Identifier: Apache-2.0
"""Measure the demo's weights on test questions, and keep what came out beside them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .measure import DOWNSTREAM_TASKS, TASKS, Score, mean, measure, wilson
from .sweep import load, sha256
from .world import GENERAL_TASKS


DEMO = Path(__file__).resolve().parents[2] / "assets" / "demo"
VARIANTS = ("base", "lora", "slim")
RESULTS = "results.json"
REPORT = "build.json"
QUESTIONS = 600
SURE = 3.89  # standard deviations: one sample in ten thousand lies outside by chance
WEIGHTS = {
    "base": "base/model.safetensors",
    "lora": "lora/adapter_model.safetensors",
    "slim": "slim/adapter_model.safetensors",
}


def hashes(demo: Path) -> dict[str, str]:
    """The hash of each variant's weights."""
    return {variant: sha256(demo / file) for variant, file in WEIGHTS.items()}


def missing(demo: Path) -> list[str]:
    """The weights that are not there."""
    return [file for file in WEIGHTS.values() if not (demo / file).is_file()]


def verify(
    demo: Path,
    n: int = QUESTIONS,
    split: str = "test",
    report: Callable[[str, str], None] = lambda variant, task: None,
) -> dict[str, Any]:
    """Let base, LoRA and SLIM answer held-out questions of every task.

    Args:
        demo: folder with `base`, `lora` and `slim`.
        n: questions of each task.
        split: "test" or "validation".
        report: called with variant and task after each task.

    Returns:
        The results in the shape of `results.json`: for each task its kind, n, and each variant's score with its 95 %
        interval; the mean scores of general and downstream tasks; hashes of the weights. Scores are from 0 to 1.
    """
    scores: dict[str, dict[str, Score]] = {}
    for variant in VARIANTS:
        model, tokenizer = load(demo / "base", None if variant == "base" else demo / variant)
        scores[variant] = measure(
            model, tokenizer, split, n, report=lambda task, variant=variant: report(variant, task)
        )
    tasks = {
        task: {"kind": "downstream" if task in DOWNSTREAM_TASKS else "general", "n": n}
        | {variant: scores[variant][task]._asdict() for variant in VARIANTS}
        for task in TASKS
    }
    return {
        "split": split,
        "tasks": tasks,
        "general": {variant: mean(scores[variant], GENERAL_TASKS) for variant in VARIANTS},
        "downstream": {variant: mean(scores[variant], DOWNSTREAM_TASKS) for variant in VARIANTS},
        "sha256": hashes(demo),
    }


def save(results: dict[str, Any], demo: Path) -> Path:
    """Write `results.json`, every number with four digits after the point."""
    rounded = json.loads(json.dumps(results), parse_float=lambda text: round(float(text), 4))
    path = demo / RESULTS
    path.write_text(json.dumps(rounded, indent=1) + "\n")
    return path


def load_results(demo: Path) -> dict[str, Any]:
    """What `results.json` says."""
    return json.loads((demo / RESULTS).read_text())


def load_report(demo: Path) -> dict[str, Any] | None:
    """What the build has written about itself; None where it has written nothing."""
    path = demo / REPORT
    return json.loads(path.read_text()) if path.is_file() else None


def differences(results: dict[str, Any], demo: Path) -> list[str]:
    """Where the stored results are not about these weights, or can hardly be true given a fresh sample.

    Args:
        results: of `verify`, with any number of questions.
        demo: folder with the stored results.

    Returns:
        A sentence for each difference; none if the stored results hold.
    """
    stored = load_results(demo)
    found = [
        f"{demo / WEIGHTS[variant]} is not the file that was measured."
        for variant, digest in results["sha256"].items()
        if stored["sha256"][variant] != digest
    ]
    for task, measured in results["tasks"].items():
        for variant in VARIANTS:
            score, n = stored["tasks"][task][variant]["score"], measured["n"]
            sample = wilson(round(measured[variant]["score"] * n), n, z=SURE)
            if not sample.low <= score <= sample.high:
                found.append(
                    f"{variant} on {task}: stored {score:.1%}, but {measured[variant]['score']:.1%} of {n} questions."
                )
    return found
