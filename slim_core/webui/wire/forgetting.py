# SPDX-License-Identifier: Apache-2.0
"""What the Forgetting tab shows: stored results, on what the adapters were trained on and on everything else."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...demo.words import task_words
from ...inference import AS_TRAINED
from ..state.session import Session
from . import plane


KINDS = {"downstream": "What the adapters were trained on", "general": "What they should not forget"}
LABELS = {"base": "Base", "lora": "LoRA", "slim": "SLIM"}
VARIANTS = tuple(LABELS)
# SLIM with its gate forced open, where it was measured.
OPEN, OPEN_LABEL = "slim_open", "SLIM, open"
RESULTS = "results.json"
NONE_DEMO = "There are no stored results yet. Make them with: python -m slim_core demo verify"
NONE_OTHER = (
    f"There are no stored results for these adapters. A file {RESULTS} in the folder of the SLIM adapter or the LoRA "
    f"is shown here when the app starts; assets/demo/{RESULTS} shows its format."
)


def read_results(path: Path) -> dict[str, Any] | None:
    """Stored results, or None where there are none or they make no sense."""
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        rows(results)
        sentence(results, LABELS)
        plane.points_of(results)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    for name in ("rates", "methods"):
        results.pop(name, None)  # they come from files of their own
    rates = plane.read_rates(path.with_name(plane.BUILD))
    return results | {"rates": rates} if rates else results


def rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a task: name, kind, n, and for each variant score, low and high.

    Raises:
        KeyError, TypeError, ValueError: if they have another shape.
    """
    table = []
    for name, task in results["tasks"].items():
        row: dict[str, Any] = {"task": task_words(str(name)), "kind": task["kind"], "n": int(task["n"])}
        if row["kind"] not in KINDS:
            raise ValueError(row["kind"])
        for variant in (*VARIANTS, *((OPEN,) if OPEN in task else ())):
            numbers = {key: float(task[variant][key]) for key in ("score", "low", "high")}
            if not all(math.isfinite(x) and 0 <= x <= 1 for x in numbers.values()):
                raise ValueError(numbers)
            row[variant] = numbers
        table.append(row)
    return table


def sentence(results: Mapping[str, Any], labels: Mapping[str, str]) -> str:
    """Both averages of the named variants, in one sentence."""
    general, downstream = results.get("general"), results.get("downstream")
    if not general or not downstream:
        return ""
    parts = (("Trained on", downstream), ("Not to be forgotten", general))
    words = {name: "base" if name == "base" else label for name, label in labels.items()}
    return " ".join(
        f"{title}: {', '.join(f'{word} {means[name]:.0%}' for name, word in words.items())}." for title, means in parts
    )


def headline(results: Mapping[str, Any] | None, session: Session) -> dict[str, str] | None:
    """What was kept and what was learned, each in a sentence; None if nothing is stored about these variants."""
    if results is None or any(name in session.own_variants for name in ("lora", "slim")):
        return None
    general, downstream = results.get("general"), results.get("downstream")
    tasks = sum(task["kind"] == "downstream" for task in results["tasks"].values())
    if not general or not downstream or not tasks:
        return None
    base, lora, slim = (round(100 * general[name]) for name in VARIANTS)
    before, *after = (round(100 * downstream[name]) for name in VARIANTS)
    fell = f"stays at {lora}%" if lora == base else f"{'falls' if lora < base else 'rises'} from {base}% to {lora}%"
    trained = "the tasks" if tasks > 1 else "the task"
    opened = f", and with its gate forced open {round(100 * general[OPEN])}%" if OPEN in general else ""
    learned = f"both know {after[0]}%" if after[0] == after[1] else f"LoRA knows {after[0]}%, SLIM {after[1]}%"
    return {
        "kept": f"Fine-tuned on {_number(tasks)}, LoRA {fell} on everything else; SLIM keeps {slim}%{opened}.",
        "learned": f"Of {trained} {learned}; the base knew {before}%.",
    }


def _number(tasks: int) -> str:
    words = ("no tasks", "one task", "two tasks", "three tasks", "four tasks", "five tasks")
    return words[tasks] if tasks < len(words) else f"{tasks} tasks"


def tab_view(results: Mapping[str, Any] | None, session: Session, is_demo: bool) -> dict[str, Any]:
    """The tab's value: what is stored, or a sentence where nothing is."""
    return view(results, session) or {"none": NONE_DEMO if is_demo else NONE_OTHER}


def view(results: Mapping[str, Any] | None, session: Session) -> dict[str, Any] | None:
    """The stored results of the variants in the columns; there are none of a visitor's own adapter."""
    if results is None:
        return None
    labels = {name: LABELS[name] for name in VARIANTS if name not in session.own_variants}
    all_rows = rows(results)
    shown_labels = labels
    if "slim" in labels and all_rows and all(OPEN in row for row in all_rows):
        shown_labels = labels | {OPEN: OPEN_LABEL}
    missing = " and ".join(f"“{variant.label}”" for variant in session.own_variants.values())
    return {
        "sentence": sentence(results, labels),
        "missing": f"No scores are stored for {missing}." if missing else "",
        "plane": plane.view(
            plane.points_of(results),
            results.get("rates", ()),
            [name for name in VARIANTS if name in session.own_variants],
            session.gates.get("slim", AS_TRAINED),
        ),
        "methods": results.get("methods"),
        "groups": [
            {"title": title, "rows": [row for row in all_rows if row["kind"] == kind]} for kind, title in KINDS.items()
        ],
        "labels": shown_labels,
    }
