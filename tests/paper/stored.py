# SPDX-License-Identifier: Apache-2.0
"""Single answers from a work folder, read without the package's code."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any


def measured(path: Path) -> dict[str, Any]:
    return json.loads(gzip.decompress(path.read_bytes()))


def answers(work: Path, result: dict[str, Any]) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """By column and task, the answers to all questions.

    Args:
        work: the folder.
        result: content of its result file, all of whose adapters answer as trained.
    """
    by_column: dict[str, dict[str, list[dict[str, Any]]]] = {}
    finished = [cell for row in result["rows"] for cell in row["cells"] if cell["column"] is not None]
    for cell in finished:
        # An adapter that was made from another one has a longer name.
        (path,) = [p for p in (work / "measured").glob("*.gz") if p.name.rsplit("-", 1)[0] == cell["adapter"]]
        samples = measured(path)["samples"]
        for column, name in (("base", "base"), (cell["column"], "row")):
            by_column[column] = {task: [sample["answers"][name] for sample in each] for task, each in samples.items()}
    return by_column
