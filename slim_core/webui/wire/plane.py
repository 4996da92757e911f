# SPDX-License-Identifier: Apache-2.0
"""The plane of learning and forgetting: each method at its rates, and SLIM at each strength of its gate."""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from ...inference import GateSetting


BUILD = "build.json"
NAMES = {"base": "Base", "lora": "LoRA", "lora_half": "LoRA, half the Linears", "slim": "SLIM"}
MOST = 500
ELSEWHERE = (
    "Your gate begins to close elsewhere, at a quantile at which nothing was measured, so no ring shows where it is."
)
MEASURED = "Dashed lines: the base. The lines through a point are its 95 % intervals over the questions asked."


@dataclass(frozen=True)
class Point:
    """A point in the plane. Scores are from 0 to 1, each with the ends of its interval.

    Attributes:
        method: of `NAMES`, or the kind of who answered.
        what: what distinguishes it from the method's other points; empty for what ships.
        general: score on what should not be forgotten.
        downstream: score on what was trained.
        strength: of SLIM's gate; None if it does not apply.
        scale: factor of what LoRA adds; None if it does not apply.
    """

    method: str
    what: str
    general: tuple[float, float, float]
    downstream: tuple[float, float, float]
    strength: float | None = None
    scale: float | None = None


def read_rates(path: Path) -> list[Point]:
    """Each method at each rate, from the report of the demo's build; empty if there is no report or it has another
    form.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["sweep"]
        return rates_of(rows)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return []


def rates_of(rows: Sequence[Mapping[str, Any]]) -> list[Point]:
    """One point for each method and rate: the mean over the seeds, from the lowest to the highest."""
    groups: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for row in rows[:MOST]:
        if row["method"] in NAMES:
            groups.setdefault((row["method"], float(row["rate"])), []).append(row)
    return [
        Point(
            method,
            f"rate {rate:g}" + (f", {len(group)} seeds" if len(group) > 1 else ""),
            _spread([row["general"] for row in group]),
            _spread([row["downstream"] for row in group]),
        )
        for (method, rate), group in groups.items()
    ]


def points_of(results: Mapping[str, Any]) -> list[Point]:
    """The points that results store: what ships, LoRA at each scale, SLIM at each strength. None in older files.

    Raises:
        KeyError, TypeError, ValueError: if they have another shape.
    """
    points: list[Point] = []
    for entry in results.get("plane", ())[:MOST]:
        method = entry["variant"]
        if method not in NAMES:
            raise ValueError(method)
        strength, scale = (None if entry.get(k) is None else float(entry[k]) for k in ("strength", "scale"))
        if method == "base" and any(p.method == "base" for p in points):
            raise ValueError("two bases")
        what = "" if scale in (None, 1) else f"× {scale:g}"
        if strength is not None:
            what = f"strength {strength:g}" if strength else "gate open"
        points.append(Point(method, what, interval(entry["general"]), interval(entry["downstream"]), strength, scale))
    return points


def view(
    points: Sequence[Point], rates: Sequence[Point], missing: Sequence[str], gate: GateSetting
) -> dict[str, Any] | None:
    """What the browser draws; None where nothing is stored.

    Args:
        points: of `points_of`.
        rates: of `rates_of`.
        missing: methods that do not answer here.
        gate: what a visitor asks of SLIM's gate.
    """
    absent = {*missing, *(("lora_half",) if "lora" in missing else ())}
    points = [p for p in points if p.method not in absent]
    rates = [p for p in rates if p.method not in absent]
    base = next((p for p in points if p.method == "base"), None)
    if base is None:
        return None
    strengths = sorted((p for p in points if p.strength is not None), key=lambda p: p.strength or 0.0)
    scales = sorted((p for p in points if p.scale is not None), key=lambda p: p.scale or 0.0)
    # The first of SLIM's points is what ships.
    shipped = next((p for p in points if p.method == "slim"), None)
    current = None
    # All points are at the trained quantile, which does not matter to a gate that is forced open.
    elsewhere = gate.quantile is not None and gate.strength != 0
    if shipped is not None and shipped.strength is not None and not elsewhere:
        current = _between(strengths, shipped.strength if gate.strength is None else gate.strength)
    return {
        "base": _plain(base),
        "shipped": [_plain(p) for p in points if (p.method == "lora" and p.scale in (None, 1)) or p is shipped],
        "rates": [_plain(p) for p in rates],
        "strengths": [_plain(p) for p in strengths],
        "scales": [_plain(p) for p in scales],
        "here": current,
        "elsewhere": ELSEWHERE if elsewhere else "",
    }


def measured(points: Mapping[str, Point]) -> dict[str, Any]:
    """What the browser draws of an evaluation.

    Args:
        points: by the name of who answered, the base first; the method of each is the kind of its variant.
    """
    base, *others = [asdict(point) | {"name": name} for name, point in points.items()]
    none: dict[str, Any] = {"rates": [], "strengths": [], "scales": [], "here": None}
    return none | {"base": base, "shipped": others, "note": MEASURED}


def _plain(point: Point) -> dict[str, Any]:
    return asdict(point) | {"name": NAMES[point.method]}


def _between(strengths: Sequence[Point], strength: float) -> dict[str, Any]:
    """Where a strength lies: measured, between two that were, or at the end beyond which none was."""
    values = [p.strength or 0.0 for p in strengths]
    at = bisect_left(values, strength)
    if at == len(values) or values[at] == strength or at == 0:
        point = strengths[min(at, len(values) - 1)]
        beyond = "" if point.strength == strength else ", beyond what was measured"
        return {
            "general": point.general[0],
            "downstream": point.downstream[0],
            "text": f"now: strength {strength:g}{beyond}",
        }
    low, high = strengths[at - 1], strengths[at]
    fraction = (strength - values[at - 1]) / (values[at] - values[at - 1])
    return {
        "general": low.general[0] + fraction * (high.general[0] - low.general[0]),
        "downstream": low.downstream[0] + fraction * (high.downstream[0] - low.downstream[0]),
        "text": f"now: strength {strength:g}, between two that were measured",
    }


def _spread(scores: Sequence[Any]) -> tuple[float, float, float]:
    return interval((fmean(map(float, scores)), min(map(float, scores)), max(map(float, scores))))


def interval(numbers: Sequence[Any]) -> tuple[float, float, float]:
    """A score and the ends of its interval.

    Raises:
        TypeError, ValueError: if they are not three shares.
    """
    score, low, high = map(float, numbers)
    if not all(math.isfinite(x) and 0 <= x <= 1 for x in (score, low, high)):
        raise ValueError(numbers)
    return score, low, high
