# SPDX-License-Identifier: Apache-2.0
"""Answers that an earlier evaluation gave already."""

from __future__ import annotations

import json
import shutil

import pytest

from slim_core.commands import evaluate_run
from tests.commands.test_evaluate import QUESTIONS, run, words
from tests.inference.conftest import folders


__all__ = ["folders"]
WRITTEN = [{"prompt": question["prompt"], "answer": "the sea"} for question in QUESTIONS]


@pytest.fixture
def files(tmp_path):
    for name, questions in (("chosen", QUESTIONS), ("written", WRITTEN)):
        lines = "".join(json.dumps(question) + "\n" for question in questions)
        (tmp_path / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    (tmp_path / "text.txt").write_text("The sea is blue.\nThe sun is red.\n", encoding="utf-8")
    return tmp_path


def evaluate(folders, files, output, adapters, *options):
    tasks = ("--tasks", files / "chosen.jsonl", files / "written.jsonl", files / "text.txt", "--batch-size", 2)
    result = run("--base", folders.base, "--adapters", *adapters, *tasks, "--output", files / output, *options)
    path = files / output
    return result, json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def items(results):
    return sum(len(samples) for samples in results["samples"].values())


def answers(results, column):
    return [sample["answers"][column] for samples in results["samples"].values() for sample in samples]


@pytest.fixture
def first(folders, files):
    _, results = evaluate(folders, files, "first.json", [folders.lora, folders.slim], "--strengths", 0)
    return results


def near(value):
    """The same but for rounding, in nested answers."""
    if isinstance(value, dict):
        return {key: near(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [near(inner) for inner in value]
    return pytest.approx(value, abs=1e-4) if isinstance(value, float) else value


def test_only_what_is_new_is_solved(folders, files, first, monkeypatch):
    adapters = [f"new={folders.slim}", folders.lora, folders.slim]
    _, anew = evaluate(folders, files, "anew.json", adapters, "--strengths", 0, 2)
    solved = []

    def noted(engine, respondents, *arguments):
        solved.append([respondent.column for respondent in respondents])
        return solve(engine, respondents, *arguments)

    solve = evaluate_run.run_tasks.__globals__["solve"]
    monkeypatch.setitem(evaluate_run.run_tasks.__globals__, "solve", noted)
    options = ("--strengths", 0, 2, "--reuse", files / "first.json")
    result, reused = evaluate(folders, files, "reused.json", adapters, *options)
    # The same adapter under another name is known too, at the strengths that were measured.
    assert solved and all(columns == ["base", "new, gate 2", "slim, gate 2"] for columns in solved)
    assert f"{5 * items(first)} answers were taken over" in words(result.stderr)
    assert list(reused["samples"]["chosen"][0]["answers"]) == list(anew["samples"]["chosen"][0]["answers"])
    for column in ("base", "new", "lora", "slim", "slim, gate 0", "slim, gate 2"):
        assert answers(reused, column) == near(answers(anew, column)), column
    assert answers(reused, "lora") == answers(first, "lora")


def test_another_base_is_noticed_by_its_answers(folders, files, first):
    told = dict.fromkeys(("chosen", "written", "text"), 0)
    for name in told:
        for sample in first["samples"][name]:
            sample["answers"]["lora"]["mark"] = -1.0
    # What the base answers otherwise now is solved again by all; items are solved two at a time.
    first["samples"]["chosen"][0]["answers"]["base"]["log_probs"][0] -= 1
    first["samples"]["written"][2]["answers"]["base"]["text"] += "!"
    (files / "first.json").write_text(json.dumps(first), encoding="utf-8")
    _, reused = evaluate(folders, files, "reused.json", [folders.lora], "--reuse", files / "first.json")
    marks = {name: [s["answers"]["lora"].get("mark") for s in reused["samples"][name]] for name in told}
    assert [mark == -1 for mark in marks["chosen"]] == [False, False, True]
    assert [mark == -1 for mark in marks["written"]] == [True, True, False]
    assert marks["text"] == [-1, -1]


@pytest.mark.parametrize("change", [{"alpha": 3.0}, {"yield_strength": 1.0}])
def test_another_configuration_is_another_adapter(folders, files, first, change):
    other = shutil.copytree(folders.slim, files / "other")
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps(config | change))
    result, results = evaluate(folders, files, "out.json", [f"slim={other}"], "--reuse", files / "first.json")
    assert "Warning: Nothing was taken over from the files of --reuse" in words(result.stderr)
    variants = {v["name"]: (v["sha256"], v["config_sha256"]) for v in first["variants"]}
    now = {v["name"]: (v["sha256"], v["config_sha256"]) for v in results["variants"]}
    assert now["slim"][0] == variants["slim"][0] and now["slim"][1] != variants["slim"][1]


def test_other_questions_are_solved(folders, files, first):
    (files / "chosen.jsonl").write_text(json.dumps(QUESTIONS[0]) + "\n", encoding="utf-8")
    result, _ = evaluate(folders, files, "out.json", [folders.lora], "--reuse", files / "first.json")
    rest = sum(len(first["samples"][name]) for name in ("written", "text"))
    assert f"{rest} answers were taken over" in words(result.stderr)


def test_it_is_resumed_with_the_same_files(folders, files, first, monkeypatch):
    def ended(self, name):
        raise KeyboardInterrupt

    reuse = ("--reuse", files / "first.json")
    whole, _ = evaluate(folders, files, "whole.json", [folders.lora], *reuse)
    assert whole.exit_code == 0
    with monkeypatch.context() as patch:
        patch.setattr(evaluate_run.CountedProgress, "next", ended)
        assert evaluate(folders, files, "part.json", [folders.lora], *reuse)[0].exit_code == 130
    without, _ = evaluate(folders, files, "part.json", [folders.lora], "--resume")
    assert "is from an evaluation of other adapters, tasks or settings" in words(without.stderr)
    assert evaluate(folders, files, "part.json", [folders.lora], *reuse, "--resume")[0].exit_code == 0
    assert (files / "part.json").read_bytes() == (files / "whole.json").read_bytes()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda results: "[1, 2", "other.json is not a result file of `evaluate`; name its .json files with --reuse."),
        (lambda results: "[]", "other.json is not a result file of `evaluate`"),
        (lambda results: json.dumps(results | {"version": 2}), "other.json is not a result file of `evaluate`"),
        (lambda results: json.dumps(results | {"samples": {}}), "other.json is damaged; leave it out of --reuse."),
        (lambda results: json.dumps(results | {"tasks": 1}), "other.json is damaged; leave it out of --reuse."),
        (
            lambda results: json.dumps(results | {"base": results["base"] | {"parameters": 1}}),
            "other.json is of another base: parameters differ. Leave it out of --reuse, or name that base.",
        ),
        (None, "other.json cannot be read: no such file or directory; name result files with --reuse."),
    ],
)
def test_a_file_that_cannot_be_used_is_one_sentence(folders, files, first, change, sentence):
    if change is not None:
        (files / "other.json").write_text(change(first), encoding="utf-8")
    result, results = evaluate(folders, files, "out.json", [folders.lora], "--reuse", files / "other.json")
    assert result.exit_code == 1 and sentence in words(result.stderr) and results is None, result.output
    assert "Traceback" not in result.output and not (files / "out.json.partial").exists()
