# SPDX-License-Identifier: Apache-2.0
"""`paper --scale full`: what it depends on, and what it says before it starts."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM
from typer.testing import CliRunner

from slim_core.cli import app
from slim_core.evaluation.errors import EvaluationError
from slim_core.paper import execute
from slim_core.paper.experiments import EXPERIMENTS
from slim_core.paper.runs import Cell
from slim_core.paper.scales import FullScale
from slim_core.paper.work import WorkFolder


def run(*words):
    return CliRunner(env={"COLUMNS": "250"}).invoke(app, ["paper", *map(str, words)])


def test_at_full_scale_the_need_is_said_first(base, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    words = ["table2", "--scale", "full", "--base", base, "--questions", 2, "--seeds", 1, "--work", tmp_path]
    plan = run(*words, "--downstream", "openbookqa", "--dry-run")
    # LoRA rewound and without intruders need no training of their own, and all methods are on attention too.
    assert "23 cells. 16 trainings and 20 measurements are left: about" in plan.stderr
    need = r"about (\d+ minutes?|[\d.]+ hours) in one process and [\d.]+ [KMG]B of memory, for a base of "
    assert re.search(need, plan.stderr), plan.stderr
    refused = run(*words)
    assert refused.exit_code == 1 and "There is no GPU here" in refused.stderr
    assert refused.stderr.index(" of memory, for a base of ") < refused.stderr.index("There is no GPU here")
    assert not any(tmp_path.iterdir())


def test_training_questions_come_from_the_training_split_alone(base, tmp_path):
    folder = tmp_path / "openbookqa"
    folder.mkdir()
    head = "ID\tQuestion Stem\tChoices\tComplete Question\tAnswer Key\n"
    for split, stem in (("train", "Ice is"), ("test", "Fire is")):
        (folder / f"{split}.tsv").write_text(f"{head}1\t{stem}\t(A) cold (B) hot (C) dry (D) old\t-\tA\n")
    scale = FullScale(base=str(base), data_dir=tmp_path, downstream=("openbookqa",))
    scale.write_set("mixed", tmp_path / "mixed.jsonl")
    (line,) = (tmp_path / "mixed.jsonl").read_text().splitlines()
    question, answer = json.loads(line)["messages"]
    assert question["content"] == (
        "Please choose the correct answer to the question: Ice is\n\n"
        "Answer1: cold Answer2: hot Answer3: dry Answer4: old\n\nAnswer format: answer1/answer2/answer3/answer4"
    )
    assert answer["content"] == "the correct answer is answer1"
    # These folders have one file, which is the test's.
    for name in ("boolq", "hellaswag", "social_iqa"):
        with pytest.raises(EvaluationError, match=f"has no training questions of {name}"):
            FullScale(data_dir=tmp_path, downstream=(name,)).write_set("mixed", tmp_path / "other.jsonl")


def _openbookqa(folder: Path, stem: str) -> Path:
    (folder / "openbookqa").mkdir(parents=True)
    head = "ID\tQuestion Stem\tChoices\tComplete Question\tAnswer Key\n"
    (folder / "openbookqa/train.tsv").write_text(f"{head}1\t{stem}\t(A) cold (B) hot (C) dry (D) old\t-\tA\n")
    return folder


def test_other_data_or_another_base_give_other_trainings(base, tmp_path):
    def identity(folder: Path, of: Path = base) -> dict[str, Any]:
        return FullScale(base=str(of), data_dir=folder, downstream=("openbookqa",)).identity("mixed")

    ice = _openbookqa(tmp_path / "a", "Ice is")
    assert identity(ice) == identity(_openbookqa(tmp_path / "b", "Ice is"))
    assert identity(ice) != identity(_openbookqa(tmp_path / "c", "Snow is"))
    # A copy is the same base, one with other weights is not, wherever they are.
    copy = shutil.copytree(base, tmp_path / "copy")
    assert identity(ice, copy) == identity(ice)
    other = shutil.copytree(base, tmp_path / "other")
    LlamaForCausalLM.from_pretrained(base).half().save_pretrained(other)
    assert identity(ice, other) != identity(ice)


def test_missing_questions_are_noticed_before_anything_is_trained(base, tmp_path):
    data = _openbookqa(tmp_path / "data", "Ice is")
    words = ["table2", "--scale", "full", "--base", base, "--data-dir", data, "--downstream", "openbookqa", "--yes"]
    for more in ([], ["--dry-run"]):
        result = run(*words, *more, "--work", tmp_path / "work")
        assert result.exit_code == 1 and "There is no openbookqa/test.tsv" in result.stderr, result.output
        assert not (tmp_path / "work").exists()


def test_the_base_that_answers_has_the_version_that_was_trained(base, tmp_path, monkeypatch):
    asked = []

    def loaded(base, *, revision):
        asked.append((base, revision))
        raise EvaluationError("enough")

    monkeypatch.setattr(execute, "load_engine", loaded)
    scale = FullScale(base="a/b", revision="v2", downstream=("openbookqa",))
    monkeypatch.setattr(FullScale, "tasks", lambda self, part: [])
    cell = Cell(EXPERIMENTS["table2"](scale.sets).contenders[0], 1e-3, 1)
    with pytest.raises(EvaluationError, match="enough"):
        execute._measure(WorkFolder(tmp_path, scale), cell, None, print)
    assert asked == [("a/b", "v2")]
