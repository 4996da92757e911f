# SPDX-License-Identifier: Apache-2.0
"""The comparison that ships: its answers, its result file, and what the docs say of it."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from slim_core.commands.paper_run import Options
from slim_core.paper.collect import collect
from slim_core.paper.results import result_file
from slim_core.paper.work import WorkFolder
from slim_core.paths import ASSETS, DEMO
from slim_core.webui.wire.methods import FILE, read_methods
from tests.paper.stored import answers


RESULTS = ASSETS / "results"
DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def stored() -> dict[str, Any]:
    return json.loads((RESULTS / FILE).read_text(encoding="utf-8"))


def test_the_means_of_the_file_are_those_of_the_answers(stored):
    kinds = {task["name"]: task["kind"] for task in stored["parts"]["mixed"]["tasks"]}
    by_column = answers(RESULTS, stored)
    points = {(point["name"], point["rate"]): point for point in stored["plane"]}
    assert len(by_column) > 10
    for row in stored["rows"]:
        for cell in (cell for cell in row["cells"] if cell["column"] is not None):
            rate = float(cell["cell"].split(" at ")[1].split("@")[0])
            for kind in ("general", "downstream"):
                tasks = [task for task in kinds if kinds[task] == kind]
                means = [fmean(answer["mark"] for answer in by_column[cell["column"]][task]) for task in tasks]
                assert fmean(means) in points[row["name"], rate][kind]["seeds"], cell["cell"]


@pytest.mark.nightly  # computes every interval and test again
def test_the_result_file_follows_from_the_answers(stored):
    rates = sorted({point["rate"] for point in stored["plane"] if point["rate"] is not None})
    seeds = sorted({int(cell["cell"].split("@")[1]) for row in stored["rows"] for cell in row["cells"]})
    options = Options("table2", [], rates, seeds, [], None, None, {}, None, [], None, None, False)
    scale = options.scale("demo", DEMO)
    experiment = options.build(scale)
    work = WorkFolder(RESULTS, scale)
    collected = collect(work, experiment, experiment.cells(rates, seeds))
    files = collected.files.values()
    assert {path.name for path in (RESULTS / "measured").iterdir()} == {
        place.measured.name for place in files if place.measured.is_file()
    }
    assert json.loads(json.dumps(result_file(collected, work))) == stored


def test_the_docs_have_the_rows_of_the_file(stored):
    text = (DOCS / "results.md").read_text(encoding="utf-8")
    tables = [
        stored["tables"][0],
        *(table for table in stored["tables"] if table["title"].startswith(("Front", "Every"))),
    ]
    assert len(tables) == 3
    for table in tables:
        measured = [row for row in table["rows"] if not {"not measured", "rate not chosen yet"} & set(row)]
        assert len(measured) > 5
        for row in measured:
            bold = [f"**{cell}**" if cell else cell for cell in row]
            lines = ("| " + " | ".join(cells) + " |" for cells in (row, bold))
            assert any(line in text for line in lines), row[0]


def test_the_app_shows_it():
    methods = read_methods(RESULTS / FILE)
    assert {point["name"] for point in methods["shipped"]} == {"LoRA", "SLIM"}
    assert {"DoRA", "OFT", "LoRAMoE", "MixLoRA", "DISeL"} <= {point["name"] for point in methods["rates"]}
