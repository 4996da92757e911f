# SPDX-License-Identifier: Apache-2.0
"""A sequence of tasks: trainings that go on from each other, and what is made of their answers."""

import json
import shutil
from dataclasses import replace
from statistics import fmean

import pytest

from slim_core.demo.trial import TrialPlan
from slim_core.evaluation.metrics import backward_transfer
from slim_core.paper import execute
from slim_core.paper.experiments import sequence
from slim_core.paper.runs import Cell
from slim_core.paper.scales import DemoScale
from slim_core.paper.sequence import EACH
from slim_core.paper.work import WorkFolder
from tests.paper.stored import answers
from tests.paper.test_paper import KEYS, run, short_answers, shown  # noqa: F401 - a fixture


SETS = {"obqa": "things and animals", "siqa": "people and feelings", "boolq": "true or false"}
# As `HOW` and `PLAN` have it on the command line.
SMALL = replace(TrialPlan(), steps=2, examples=12, batch=2, r=2)


@pytest.fixture(scope="module")
def learned(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sequence")
    result = run("sequence", "--seeds", 1, "--base", base, "--work", folder)
    assert result.exit_code == 0, result.output
    return folder, result


def test_each_stage_goes_on_from_the_one_before(base, learned):
    folder, _ = learned
    work, experiment = WorkFolder(folder, DemoScale(base, SMALL, questions=2)), sequence(SETS)
    names = [contender.name for contender in experiment.contenders]
    assert names == [*(f"{m}-{i}" for m in ("lora", "slim") for i in (1, 2, 3)), "slim-siqa", "slim-boolq"]
    by_name = {c.name: work.files_of(Cell(c, 0.01, 1)) for c in experiment.contenders}
    assert by_name["slim-1"].before is None and by_name["slim-siqa"].before is None
    assert by_name["slim-3"].before == by_name["slim-2"].folder
    assert by_name["slim-2"].origin != by_name["slim-siqa"].origin
    starts = {
        path.parent.name: json.loads(path.read_text())["arguments"]["start_from"]
        for path in (folder / "trained").glob("*/training.json")
    }
    expected = {p.origin.name: None if p.before is None else str(p.before) for p in by_name.values()}
    assert starts == expected


def test_the_matrix_and_what_follows_from_it(learned):
    folder, result = learned
    saved = json.loads((folder / "sequence-demo.json").read_text(encoding="utf-8"))
    lora, slim, each = saved["sequence"]
    assert [row["method"] for row in (lora, slim, each)] == ["LoRA, one adapter", "SLIM, one adapter", EACH]
    by_column = answers(folder, saved)
    for stage, column in enumerate(("base", "lora-1@1", "lora-2@1", "lora-3@1")):
        expected = [fmean(answer["mark"] for answer in by_column[column][f"demo_{task}"]) for task in SETS]
        assert lora["accuracy"][stage] == expected
    for row in (lora, slim, each):
        assert row["backward_transfer"] == backward_transfer(row["accuracy"]) and len(row["general"]) == 4
    assert each["accuracy"][1] == slim["accuracy"][1]  # with one task there is one adapter
    columns = ["slim-1@1", "slim-siqa@1", "slim-boolq@1"]
    for j, (task, own) in enumerate(zip(SETS, columns, strict=True)):
        marks, chosen = [], []
        for same in zip(*(by_column[c][f"demo_{task}"] for c in columns), strict=True):
            past = {c: fmean(answer.get("identity") or [1.0]) for c, answer in zip(columns, same, strict=True)}
            chosen.append(min(columns, key=past.__getitem__))
            marks.append(same[columns.index(chosen[-1])]["mark"])
        assert each["accuracy"][3][j] == fmean(marks)
        assert each["own_adapter"][j] == fmean(c == own for c in chosen)
    assert "backward transfer" in result.stdout and "own adapter" in result.stdout


def test_the_stages_are_in_words(learned):
    folder, result = learned
    assert not KEYS.search(result.stdout) and not KEYS.search(result.stderr.split("Results:")[0])
    assert not KEYS.search(shown((folder / "sequence-demo-mixed.html").read_text(encoding="utf-8")))
    saved = json.loads((folder / "sequence-demo.json").read_text(encoding="utf-8"))
    matrix = saved["tables"][0]
    assert matrix["columns"][2:] == ["Things and animals", "People and feelings", "True or false", "general"]
    assert [row[1] for row in matrix["rows"][:4]] == ["nothing: the base", *matrix["columns"][2:5]]
    assert "LoRA after things and animals, then people and feelings" in [row["title"] for row in saved["rows"]]


def test_an_interrupted_sequence_gives_the_same_file(base, learned, tmp_path, monkeypatch):
    folder, _ = learned
    work = tmp_path / "work"
    shutil.copytree(folder, work)
    (work / "sequence-demo.json").unlink()
    # The second stage is gone, but not the third, which was made from it.
    small = WorkFolder(work, DemoScale(base, SMALL, questions=2))
    cell_files = {c.name: small.files_of(Cell(c, 0.01, 1)) for c in sequence(SETS).contenders}
    begun = json.loads((cell_files["slim-3"].origin / "training.json").read_text())["arguments"]["start_from"]
    assert begun.endswith(cell_files["slim-2"].origin.name)
    for name in ("slim-2", "slim-3"):
        shutil.rmtree(cell_files[name].origin)
        cell_files[name].measured.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(execute, "train", lambda settings: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run("sequence", "--seeds", 1, "--base", base, "--work", work).exit_code == 130
    # A stage alone has the ones before it made too.
    assert run("sequence", "--only", "slim-3", "--seeds", 1, "--base", base, "--work", work).exit_code == 0
    assert cell_files["slim-2"].is_ready and not cell_files["slim-2"].measured.is_file()
    assert run("sequence", "--seeds", 1, "--base", base, "--work", work).exit_code == 0
    assert (work / "sequence-demo.json").read_bytes() == (folder / "sequence-demo.json").read_bytes()
