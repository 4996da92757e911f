# SPDX-License-Identifier: Apache-2.0
"""Puts together what the steps of gpu_check.sh found: `python scripts/gpu_report.py FOLDER DEVICE`."""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any


ROOT = Path(__file__).resolve().parents[1]
COUNTS = ("tests", "failures", "errors", "skipped")


def steps_of(folder: Path) -> list[dict[str, Any]]:
    """Name, exit code, seconds and command of each step; code 124 says that it ran out of its time."""
    steps = []
    for line in (folder / "steps.tsv").read_text(encoding="utf-8").splitlines():
        name, code, seconds, command = line.split("\t")
        steps.append({"step": name, "code": code, "seconds": int(seconds), "command": command})
    return steps


def tests_of(folder: Path) -> dict[str, int] | None:
    """How many tests ran, failed and were skipped; None if they did not get to the end."""
    try:
        suite = next(ElementTree.parse(folder / "tests.xml").iter("testsuite"))
    except (OSError, ElementTree.ParseError, StopIteration):
        return None
    return {name: int(suite.get(name, "0")) for name in COUNTS}


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a table in Markdown."""
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def case_lines(case: dict[str, Any]) -> list[str]:
    """A case of a bench, ratios first."""
    rows = case["rows"]
    if rows and "clients" in rows[0]:
        head = ["clients", "answers_per_second", "p50", "p99", "answers", "refused", "lost"]
        return table(head, [[_number(row[name]) for name in head] for row in rows])
    if rows and "peak" in rows[0]:
        return table(
            ["", f"peak × {rows[0]['way']}", "peak, MB", "weights, MB"],
            [
                [
                    row["way"],
                    _number(row["peak"] / rows[0]["peak"] if row["peak"] and rows[0]["peak"] else None),
                    _number(row["peak"] and row["peak"] / 1e6),
                    _number(row["weights"] / 1e6),
                ]
                for row in rows
            ],
        )
    references = list(dict.fromkeys(name for row in rows for name in row["ratios"]))
    facts = list(dict.fromkeys(name for row in rows for name in row["facts"]))
    head = ["", "measure", *(f"× {name}" for name in references), "ms", *facts]
    return table(
        head,
        [
            [
                row["way"],
                row["measure"],
                *(_number(row["ratios"].get(name)) for name in references),
                _number(1e3 * row["seconds"]),
                *(_number(row["facts"].get(name)) for name in facts),
            ]
            for row in rows
        ],
    )


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 1000 or value == int(value) else f"{value:.3g}"


def main(folder: Path, device: str) -> None:
    """Write check.json and check.md."""
    sys.path.insert(0, str(ROOT))
    from slim_core.evaluation.bench.machine import describe_machine

    machine = describe_machine(device)
    steps, tests = steps_of(folder), tests_of(folder)
    benches = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("bench-*.json"))}
    check = {"machine": machine, "steps": steps, "tests": tests, "benches": benches}
    (folder / "check.json").write_text(json.dumps(check, indent=1) + "\n", encoding="utf-8")
    where = machine.get("card", machine["processor"])
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
    lines = [f"# {where}, {machine['date'][:10]}", "", f"{versions}, CUDA {machine.get('cuda') or 'not used'}", ""]
    if device == "cpu":
        lines += ["This run tried the script on a CPU, with a tiny model: its numbers say nothing about speed.", ""]
    lines += table(["step", "ended", "seconds"], [[s["step"], ended(s["code"]), str(s["seconds"])] for s in steps])
    if tests is not None:
        nothing = ": no test ran" if tests["skipped"] == tests["tests"] else ""
        lines += ["", ", ".join(f"{name} {count}" for name, count in tests.items()) + nothing]
    for name, bench in benches.items():
        for case in bench["cases"]:
            lines += ["", f"## {name}: {case['title']}", "", *case_lines(case)]
        lines += [f"\n{left} was left out: {reason}" for left, reason in bench.get("left_out", {}).items()]
    (folder / "check.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{folder / 'check.md'} and check.json are written.")


def ended(code: str) -> str:
    """How a step ended, in words."""
    return {"0": "well", "124": "out of its time", "no-time": "not begun: no time was left"}.get(code, f"code {code}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
