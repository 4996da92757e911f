# SPDX-License-Identifier: Apache-2.0
"""The stored comparison of all methods, trained on the demo's tasks, as the Forgetting tab shows it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .plane import MOST, Point, interval


FILE = "table2-demo.json"
TITLE = "Every method on the same tasks"
NOTE = (
    "The paper's rivals and others, each trained on the same examples as LoRA and SLIM and asked the same questions. "
    "Dashed lines: the base. Each small point is a method at one learning rate, its lines are 95 % intervals over the "
    "questions; "
)
NAMED_AT = "LoRA and SLIM are named at the rate with the lowest validation loss."
ONE_RATE = "LoRA and SLIM are named. So far all have been trained at one rate; others may do better at another."
NAMED = ("lora", "slim")
OTHER = "other"


def read_methods(path: Path) -> dict[str, Any] | None:
    """What the browser draws of `paper table2`'s result file; None where there is none, or it has another form."""
    try:
        return _view(json.loads(path.read_text(encoding="utf-8"))["plane"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError, StopIteration):
        return None


def _view(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    points = [_point(entry) for entry in entries[:MOST]]
    base = next(point for point in points if point["method"] == "base")
    named = [point for point in points if point["method"] in NAMED and point["chosen"]]
    others = [point for point in points if point is not base and point not in named]
    none: dict[str, Any] = {"strengths": [], "scales": [], "here": None}
    rates = {entry["rate"] for entry in entries[:MOST]} - {None}
    note = NOTE + (ONE_RATE if len(rates) == 1 else NAMED_AT)
    return none | {"title": TITLE, "note": note, "base": base, "shipped": named, "rates": others}


def _point(entry: Mapping[str, Any]) -> dict[str, Any]:
    name, kinds = str(entry["name"]), {kind: entry[kind] for kind in ("general", "downstream")}
    scores = {kind: interval([score[key] for key in ("score", "low", "high")]) for kind, score in kinds.items()}
    seeds = len(kinds["general"]["seeds"])
    detail = "" if entry["rate"] is None else f"rate {entry['rate']:g}, {seeds} seed{'s' if seeds > 1 else ''}"
    method = name if name in ("base", *NAMED) else OTHER
    point = Point(method, detail, scores["general"], scores["downstream"])
    title = "Base" if method == "base" else str(entry["title"])
    return asdict(point) | {"name": title, "chosen": bool(entry["chosen"])}
