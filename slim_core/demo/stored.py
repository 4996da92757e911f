# SPDX-License-Identifier: Apache-2.0
"""The files next to the demo's weights: measurements, build report, and the app's examples."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


RESULTS = "results.json"
REPORT = "build.json"
EXAMPLES = "examples.json"
DEPTH = 2  # up to which every entry has its own line


@dataclass(frozen=True)
class Shown:
    """An example of the app as stored.

    Attributes:
        task: of `measure.TASKS`.
        prompt: what is asked.
        right: the right answer.
        answers: of "base", "lora" and "slim".
        exact: whether every gate was 0 at every token, so that SLIM is the base by construction.
    """

    task: str
    prompt: str
    right: str
    answers: dict[str, str]
    exact: bool


def write_json(path: Path, value: Any) -> None:
    """Write nested tables as JSON, numbers with five digits, and each second-level entry on one line."""
    rounded = json.loads(json.dumps(value), parse_float=lambda text: float(f"{float(text):.5g}"))
    path.write_text(_text(rounded) + "\n")


def _text(value: Any, depth: int = 0) -> str:
    if depth == DEPTH or not value or not isinstance(value, dict | list):
        return json.dumps(value)
    indent = " " * (depth + 1)
    if isinstance(value, dict):
        lines = [f"{indent}{json.dumps(key)}: {_text(entry, depth + 1)}" for key, entry in value.items()]
    else:
        lines = [indent + _text(entry, depth + 1) for entry in value]
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    return f"{opening}\n" + ",\n".join(lines) + f"\n{' ' * depth}{closing}"


def save(results: dict[str, Any], demo: Path) -> Path:
    """Write `results.json`."""
    write_json(demo / RESULTS, results)
    return demo / RESULTS


def load_results(demo: Path) -> dict[str, Any]:
    """The content of `results.json`."""
    return json.loads((demo / RESULTS).read_text())


def load_report(demo: Path) -> dict[str, Any] | None:
    """The report of the build; None if there is none."""
    path = demo / REPORT
    return json.loads(path.read_text()) if path.is_file() else None


def load_examples(demo: Path) -> tuple[list[tuple[Shown, Shown]], list[Shown]]:
    """The pairs of examples (trained form, the base's own form) and the single ones; empty if there is no file.

    Raises:
        ValueError, KeyError, TypeError: if the file has another shape.
    """
    path = demo / EXAMPLES
    if not path.is_file():
        return [], []
    stored = json.loads(path.read_text(encoding="utf-8"))
    pairs = [(Shown(**trained), Shown(**own)) for trained, own in stored["pairs"]]
    return pairs, [Shown(**example) for example in stored["alone"]]
