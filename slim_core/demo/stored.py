# SPDX-License-Identifier: Apache-2.0
"""The two files beside the demo's weights: what was measured, and how they were made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


RESULTS = "results.json"
REPORT = "build.json"
DEPTH = 2  # down to which every entry has a line of its own


def write_json(path: Path, value: Any) -> None:
    """Write a table of tables, every number with five digits, and an entry of the second level on one line."""
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
    """What `results.json` says."""
    return json.loads((demo / RESULTS).read_text())


def load_report(demo: Path) -> dict[str, Any] | None:
    """What the build has written about itself; None where it has written nothing."""
    path = demo / REPORT
    return json.loads(path.read_text()) if path.is_file() else None
