# SPDX-License-Identifier: Apache-2.0
"""The comparisons that ship: their answers, their result files, and what the docs say of them."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from slim_core.commands.paper_run import Options
from slim_core.paper.collect import Collected, collect
from slim_core.paper.results import result_file
from slim_core.paper.work import WorkFolder
from slim_core.paths import ASSETS, DEMO
from slim_core.webui.wire.methods import FILE, read_methods
from tests.paper.stored import answers


RESULTS = ASSETS / "results"
DOCS = Path(__file__).parents[2] / "docs"


# What is in the folder: the rates and steps of each experiment, all from the same seeds.
SHIPPED: dict[str, dict[str, list[Any]]] = {
    "table2": {"rates": [3e-4, 1e-3, 3e-3]},
    "noise": {"rates": [3e-3]},
}
SEEDS = [42, 43, 44]


def stored_in(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}-demo.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def stored() -> dict[str, Any]:
    return json.loads((RESULTS / FILE).read_text(encoding="utf-8"))


def collected(name: str) -> tuple[Collected, WorkFolder]:
    numbers = {"rates": [], "steps": []} | SHIPPED[name]
    options = Options(name, [], numbers["rates"], SEEDS, numbers["steps"], None, None, {}, None, [], None, None, False)
    scale = options.scale("demo", DEMO)
    experiment, work = options.build(scale), WorkFolder(RESULTS, scale)
    return collect(work, experiment, experiment.cells(numbers["rates"], SEEDS)), work


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
@pytest.mark.parametrize("name", SHIPPED)
def test_the_result_file_follows_from_the_answers(name):
    assert json.loads(json.dumps(result_file(*collected(name)))) == stored_in(name)


@pytest.mark.nightly  # hashes the base for every cell
def test_every_answer_belongs_to_a_result_file():
    assert {path.stem for path in RESULTS.glob("*.json")} == {f"{name}-demo" for name in SHIPPED}
    files = [place.measured for name in SHIPPED for place in collected(name)[0].files.values()]
    measured = {path.name for path in files if path.is_file()}
    assert {path.name for path in (RESULTS / "measured").iterdir()} == measured


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


@pytest.mark.parametrize("name", [name for name in SHIPPED if name != "table2"])
def test_the_docs_have_the_scores_of_the_smaller_experiments(name):
    text = (DOCS / "results.md").read_text(encoding="utf-8")
    for row in stored_in(name)["tables"][0]["rows"]:
        bold = [f"**{cell}**" if cell else cell for cell in row]
        assert any("| " + " | ".join(cells) + " |" in text for cells in (row, bold)), row[0]


def test_the_app_shows_it():
    methods = read_methods(RESULTS / FILE)
    assert {point["name"] for point in methods["shipped"]} == {"LoRA", "SLIM"}
    assert {"DoRA", "OFT", "LoRAMoE", "MixLoRA", "DISeL"} <= {point["name"] for point in methods["rates"]}
