# SPDX-License-Identifier: Apache-2.0
"""Measure the demo's weights on test questions and store the results next to them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

import slim_core

from ..evaluation.statistics import Marks, difference, mcnemar, mean_score, score, wilson
from .forms import FORMS, asked_in_form
from .identity import identity_shares, measure_identity
from .measure import DOWNSTREAM_TASKS, TASKS, Model, mark, measure, reply
from .pool import worker_pool
from .stored import load_results
from .trial import SCALES, load, rewind, sha256
from .world import GENERAL_TASKS


SHIPPED = ("base", "lora", "slim")
OPEN = "slim_open"
VARIANTS = (*SHIPPED, OPEN)
FORMAT = 2
QUESTIONS = 600
STRENGTHS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
KINDS = {"general": GENERAL_TASKS, "downstream": DOWNSTREAM_TASKS}
SURE = 3.89  # standard deviations: one sample in ten thousand lies outside by chance
WEIGHTS = {
    "base": "base/model.safetensors",
    "lora": "lora/adapter_model.safetensors",
    "slim": "slim/adapter_model.safetensors",
}


@dataclass(frozen=True)
class ComparedModel:
    """One of the models that are compared.

    Attributes:
        name: of `VARIANTS`, or of the adapter with its scale or strength.
        adapter: "lora", "slim" or None.
        scale: factor of what LoRA adds.
        strength: of SLIM's gate; None as trained.
    """

    name: str
    adapter: str | None = None
    scale: float = 1.0
    strength: float | None = None

    def load(self, demo: Path) -> tuple[Model, PreTrainedTokenizerBase]:
        """The model and its tokenizer."""
        model, tokenizer = load(demo / "base", None if self.adapter is None else demo / self.adapter)
        if self.scale != 1.0:
            rewind(model, self.scale)
        if self.strength is not None:
            slim_core.set_gate(model, strength=self.strength)
        return model, tokenizer


MAIN = (
    ComparedModel("base"),
    ComparedModel("lora", "lora"),
    ComparedModel("slim", "slim"),
    ComparedModel(OPEN, "slim", strength=0.0),
)
REWOUND = tuple(ComparedModel(f"lora x {scale:g}", "lora", scale=scale) for scale in SCALES)


PAIRS = (
    ("slim", "base"),
    ("slim", "lora"),
    ("lora", "base"),
    ("slim", OPEN),
    *(("slim", variant.name) for variant in REWOUND),
)


def compared(demo: Path) -> tuple[ComparedModel, ...]:
    """The variants that answer the test questions: the main ones, scaled-down LoRA, and SLIM with other strengths."""
    trained = trained_strength(demo)
    others = (s for s in STRENGTHS if s not in (0.0, trained))
    return (*MAIN, *REWOUND, *(ComparedModel(f"slim at {s:g}", "slim", strength=s) for s in others))


def trained_strength(demo: Path) -> float:
    """The strength of the gate that SLIM was trained with."""
    return json.loads((demo / "slim" / "adapter_config.json").read_text())["yield_strength"]


def hashes(demo: Path) -> dict[str, str]:
    """The hash of each variant's weights."""
    return {variant: sha256(demo / file) for variant, file in WEIGHTS.items()}


def missing(demo: Path) -> list[str]:
    """The missing weights."""
    return [file for file in WEIGHTS.values() if not (demo / file).is_file()]


def jobs(demo: Path) -> int:
    """How often `verify` calls `report`."""
    return len(compared(demo)) + len(MAIN) + 1


def verify(
    demo: Path,
    n: int = QUESTIONS,
    split: str = "test",
    workers: int = 1,
    report: Callable[[str], None] = lambda name: None,
) -> dict[str, Any]:
    """Let base, LoRA, SLIM and the comparison variants answer held-out questions of every task.

    Args:
        demo: folder with `base`, `lora` and `slim`.
        n: questions of each task; a third as many in each form of `forms.FORMS`.
        split: "test" or "validation".
        workers: variants at a time, each in a process of its own.
        report: called after each job with what is done.

    Returns:
        The results in the shape of `results.json`, scores from 0 to 1, intervals of 95 % as [score, low, high]:

        - "tasks": for each task its kind, n, and the score of each of `VARIANTS` with its interval.
        - "general", "downstream": each variant's mean score; "means": the same with intervals.
        - "plane": both means of base, LoRA at each scale and SLIM at each strength.
        - "pairs": SLIM against the others on the same questions: the difference, how many questions only one of them
          answered correctly, and the exact p-value.
        - "identity": see `identity.measure_identity`.
        - "forms": by kind and form, each variant's score and the share of the prompts that SLIM sends past LoRA.
        - "marks": for each variant and task the right ("1") and wrong answers, in the order of the questions.
        - "sha256": of the weights.
    """
    variants = compared(demo)
    few = max(1, n // 3)
    work: list[tuple[str, Callable[..., Any], tuple[Any, ...]]] = [
        *((f"test questions, {v.name}", _answer, (demo, v, split, n)) for v in variants),
        *((f"forms, {v.name}", _answer_forms, (demo, v, split, few)) for v in MAIN),
        ("routing", _route, (demo, split, few)),
    ]
    results = run_jobs(work, workers, report)
    marks = dict(zip((v.name for v in variants), results, strict=False))
    forms = dict(zip((v.name for v in MAIN), results[len(variants) :], strict=False))
    identity, form_identity = results[-1]
    return {
        "format": FORMAT,
        "split": split,
        "tasks": {
            task: {"kind": "downstream" if task in DOWNSTREAM_TASKS else "general", "n": n}
            | {name: score(marks[name][task])._asdict() for name in VARIANTS}
            for task in TASKS
        },
        **{kind: {name: mean_score(marks[name], tasks).score for name in VARIANTS} for kind, tasks in KINDS.items()},
        "means": {kind: {name: mean_score(marks[name], tasks) for name in VARIANTS} for kind, tasks in KINDS.items()},
        "plane": [_point(variant, marks[variant.name], demo) for variant in variants],
        "pairs": pairs(marks, PAIRS),
        "identity": identity,
        "forms": _forms(forms, form_identity),
        "marks": marks,
        "sha256": hashes(demo),
    }


def _answer(demo: Path, variant: ComparedModel, split: str, n: int) -> dict[str, str]:
    return measure(*variant.load(demo), split, n)


def _answer_forms(demo: Path, variant: ComparedModel, split: str, n: int) -> dict[str, dict[str, str]]:
    """The marks by kind and form."""
    model, tokenizer = variant.load(demo)
    marks: dict[str, dict[str, str]] = {}
    for kind, (_, forms) in FORMS.items():
        for form in forms:
            examples, chats = asked_in_form(kind, form, split, n)
            marks.setdefault(kind, {})[form] = mark(examples, reply(model, tokenizer, chats))
    return marks


def _route(demo: Path, split: str, n: int) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
    """The share past LoRA, by task, and by kind and form."""
    model, tokenizer = MAIN[2].load(demo)
    forms = {
        kind: {
            form: identity_shares(model, tokenizer, asked_in_form(kind, form, split, n)[1]).mean().item()
            for form in forms
        }
        for kind, (_, forms) in FORMS.items()
    }
    return measure_identity(model, tokenizer, split, n), forms


def run_jobs(
    work: Sequence[tuple[str, Callable[..., Any], tuple[Any, ...]]], workers: int, report: Callable[[str], None]
) -> list[Any]:
    """Run functions, several at a time, and return their results."""
    if workers == 1:
        results = []
        for name, function, arguments in work:
            results.append(function(*arguments))
            report(name)
        return results
    with worker_pool(workers) as pool:
        futures = [pool.submit(function, *arguments) for _, function, arguments in work]
        for (name, *_), future in zip(work, futures, strict=True):
            future.result()
            report(name)
        return [future.result() for future in futures]


def _point(variant: ComparedModel, marks: Marks, demo: Path) -> dict[str, Any]:
    """A variant's scores for learning and forgetting."""
    point: dict[str, Any] = {"variant": variant.adapter or "base"}
    if variant.adapter == "lora":
        point["scale"] = variant.scale
    if variant.adapter == "slim":
        point["strength"] = trained_strength(demo) if variant.strength is None else variant.strength
    return point | {kind: mean_score(marks, tasks) for kind, tasks in KINDS.items()}


def pairs(marks: Mapping[str, Marks], names: Iterable[tuple[str, str]]) -> list[dict[str, Any]]:
    """How the first of two variants differs from the second, in each kind of tasks, on the same questions."""
    return [
        {"first": first, "second": second, "kind": kind}
        | {"difference": difference(marks[first], marks[second], tasks)}
        | mcnemar(marks[first], marks[second], tasks)._asdict()
        for first, second in names
        for kind, tasks in KINDS.items()
    ]


def _forms(
    marks: dict[str, dict[str, dict[str, str]]], identity: dict[str, dict[str, float]]
) -> dict[str, dict[str, dict[str, Any]]]:
    return {
        kind: {
            form: {"n": len(marks["base"][kind][form]), "identity": share}
            | {name: score(marks[name][kind][form]) for name in marks}
            for form, share in shares.items()
        }
        for kind, shares in identity.items()
    }


def sample(demo: Path, n: int, split: str = "test") -> dict[str, Any]:
    """The shipped weights on a few questions of each task: enough to see whether the stored results can be true.

    Returns:
        The hashes of the weights, and each task's n with the right answers of base, LoRA and SLIM.
    """
    marks = {variant.name: _answer(demo, variant, split, n) for variant in MAIN[:3]}
    return {
        "sha256": hashes(demo),
        "tasks": {task: {"n": n} | {name: marks[name][task].count("1") for name in marks} for task in TASKS},
    }


def differences(fresh: dict[str, Any], demo: Path) -> list[str]:
    """Where the stored results are not about these weights, or hardly fit a fresh sample.

    Args:
        fresh: of `sample`, with any number of questions.
        demo: folder with the stored results.

    Returns:
        A sentence for each difference; none if the stored results hold.
    """
    stored = load_results(demo)
    lines = [
        f"{demo / WEIGHTS[variant]} is not the file that was measured."
        for variant, digest in fresh["sha256"].items()
        if stored["sha256"][variant] != digest
    ]
    for task, measured in fresh["tasks"].items():
        for variant in SHIPPED:
            stored_score, right, n = stored["tasks"][task][variant]["score"], measured[variant], measured["n"]
            interval = wilson(right, n, z=SURE)
            if not interval.low <= stored_score <= interval.high:
                lines.append(f"{variant} on {task}: stored {stored_score:.1%}, but {right / n:.1%} of {n} questions.")
    return lines
