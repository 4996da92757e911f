# SPDX-License-Identifier: Apache-2.0
"""`evaluate` as a person calls it."""

from __future__ import annotations

import json
import re
from html import unescape

import pytest
from typer.testing import CliRunner

from slim_core.base.formatting import share
from slim_core.cli import app
from slim_core.commands import evaluate_run
from tests.inference.conftest import folders, save_lora, tiny_base


__all__ = ["folders"]
QUESTIONS = [
    {"prompt": "What is the capital of Peru?", "choices": ["Lima", "the sea"], "answer": "Lima"},
    {"prompt": "The sea is <script>alert(1)</script>", "choices": ["blue", "red", "so"], "answer": 0},
    {"prompt": "They say", "choices": ["it is", "the sun"], "answer": 1},
]


def run(*arguments):
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, ["evaluate", *map(str, arguments)])


def words(text):
    return " ".join(text.split())


@pytest.fixture
def files(tmp_path):
    for name in ("trained", "known"):
        lines = "".join(json.dumps(question) + "\n" for question in QUESTIONS)
        (tmp_path / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    (tmp_path / "text.txt").write_text("The sea is blue.\nThe sun is red.\n", encoding="utf-8")
    return tmp_path


def named(folders, files):
    known = f"general:{files / 'known.jsonl'}"
    adapters = ("--base", folders.base, "--adapters", f"lora@1={folders.lora}", f"lora@2={folders.lora}", folders.slim)
    return (*adapters, "--tasks", files / "trained.jsonl", known, files / "text.txt", "--batch-size", 2)


def test_results_and_report(folders, files):
    output = files / "out.json"
    result = run(*named(folders, files), "--strengths", 0, 8, "--quantiles", 0.5, "--output", output)
    assert result.exit_code == 0, result.output
    results = json.loads(output.read_text(encoding="utf-8"))
    assert (results["format"], results["version"]) == ("slim-evaluation", 1)
    columns = ["base", "lora@1", "lora@2", "slim", "slim, gate 0", "slim, gate 8", "slim, gate quantile 0.5"]
    assert [variant["name"] for variant in results["variants"]] == columns
    used = [(variant["strength_used"], variant["quantile_used"]) for variant in results["variants"]]
    assert used == [*[(None, None)] * 4, (0, None), (8, None), (None, 0.5)]
    assert [(t["name"], t["kind"], t["scoring"]) for t in results["tasks"]] == [
        ("trained", "downstream", "likelihood"), ("known", "general", "likelihood"), ("text", "general", "loss")
    ]  # fmt: skip
    for name in ("trained", "known"):
        assert [sample["id"] for sample in results["samples"][name]] == [0, 1, 2]
        assert all(list(sample["answers"]) == columns for sample in results["samples"][name])
    likely, lost = results["summary"]
    assert [task["name"] for task in likely["tasks"]] == ["trained", "known"] and lost["scoring"] == "loss"
    marks = [sample["answers"]["base"]["mark"] for sample in results["samples"]["trained"]]
    assert likely["tasks"][0]["scores"]["base"][0] == pytest.approx(sum(marks) / 3)
    # The same weights twice are two seeds without a spread.
    assert likely["seeds"]["lora"]["general"]["seeds"] == 2
    assert likely["seeds"]["lora"]["general"]["deviation"] == 0.0
    assert set(likely["auc"]) >= {"slim"} and "base" not in likely["auc"] and "lora@1" not in likely["auc"]
    assert "likelihood of" in words(result.stdout) or "By likelihood" in words(result.stdout)
    assert "Results and report:" in words(result.stderr)
    assert sorted(path.name for path in files.iterdir()) == [
        "known.jsonl", "out.html", "out.json", "text.txt", "trained.jsonl"
    ]  # fmt: skip


def test_the_report_needs_nothing_and_runs_nothing(folders, files):
    output = files / "out.json"
    assert run(*named(folders, files), "--output", output).exit_code == 0
    page = (files / "out.html").read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page and "<script" not in page
    assert not re.search(r"(?:src|href)\s*=|url\(|@import|https?://", page)
    assert "default-src 'none'" in page
    assert page.count('role="img"') == 1 and "stroke-dasharray" in page
    for part in ("By likelihood", "Loss in nats per token", "McNemar", "retention", "past LoRA, by block", "lora@2"):
        assert part in page, part
    # Columns with nothing in them are left out: a loss has no mean, and what was learned no retention.
    assert page.count("retention, %") == 1 and page.count("change to the base, points") == 2


def test_a_run_that_was_ended_goes_on_to_the_same_file(folders, files, monkeypatch):
    whole, part = files / "whole.json", files / "part.json"
    assert run(*named(folders, files), "--output", whole).exit_code == 0
    nothing = evaluate_run.CountedProgress.next
    seen = []

    def ended(self, name):
        seen.append(name)
        if len(seen) == 3:
            raise KeyboardInterrupt
        nothing(self, name)

    with monkeypatch.context() as patch:
        patch.setattr(evaluate_run.CountedProgress, "next", ended)
        result = run(*named(folders, files), "--output", part)
    assert result.exit_code == 130 and "Continue with --resume." in words(result.stderr)
    assert not part.exists() and (files / "part.json.partial").exists()
    again = run(*named(folders, files), "--output", part)
    assert again.exit_code == 1 and "is from an evaluation that was interrupted; continue it with --resume" in words(
        again.stderr
    )
    other = run(*named(folders, files), "--limit", 2, "--resume", "--output", part)
    assert other.exit_code == 1 and "is from an evaluation of other adapters, tasks or settings" in words(other.stderr)
    assert run(*named(folders, files), "--resume", "--output", part).exit_code == 0
    assert part.read_bytes() == whole.read_bytes()
    assert part.with_suffix(".html").read_bytes() == whole.with_suffix(".html").read_bytes()
    assert not (files / "part.json.partial").exists()


def test_a_task_that_cannot_be_solved_does_not_cost_the_others(folders, files):
    long = {"prompt": "Lima? " * 1000, "choices": ["yes", "no"], "answer": 0}
    (files / "long.jsonl").write_text(json.dumps(long) + "\n", encoding="utf-8")
    arguments = ("--base", folders.base, "--adapters", folders.slim, "--output", files / "out.json", "--tasks")
    result = run(*arguments, files / "known.jsonl", files / "long.jsonl")
    assert result.exit_code == 0, result.output
    assert "Warning: No item of long could be solved: " in result.stderr and "This task is left out." in result.stderr
    results = json.loads((files / "out.json").read_text(encoding="utf-8"))
    assert [task["name"] for task in results["tasks"]] == ["known"] == [*results["samples"]]
    alone = run(*arguments[:-2], files / "alone.json", "--tasks", files / "long.jsonl")
    assert alone.exit_code == 1 and "Error: No item of long could be solved: " in alone.stderr


def test_stages_of_one_training(folders, files):
    output = files / "out.json"
    options = ("--base", folders.base, "--adapters", f"first={folders.lora}", f"second={folders.slim}", "--sequence")
    result = run(
        *options, "--tasks", files / "trained.jsonl", f"downstream:{files / 'known.jsonl'}", "--output", output
    )
    assert result.exit_code == 0, result.output
    results = json.loads(output.read_text(encoding="utf-8"))
    scores = [
        [task["scores"][name][0] for task in results["summary"][0]["tasks"]] for name in ("base", "first", "second")
    ]
    stages = results["stages"]["likelihood"]
    assert stages["average_accuracy"] == pytest.approx(sum(scores[2]) / 2)
    assert stages["backward_transfer"] == pytest.approx(scores[2][0] - scores[1][0])
    assert stages["forgetting"] == pytest.approx(scores[1][0] - scores[2][0])
    assert "stages of one training" in (files / "out.html").read_text(encoding="utf-8")


def test_prompts_without_right_answers(folders, files):
    prompts, output = files / "p.txt", files / "out.json"
    prompts.write_text("What is the capital of Peru?\n<b>Lima</b>\n", encoding="utf-8")
    adapters = ("--adapters", folders.lora, f"mine={folders.slim}")
    result = run("--base", folders.base, *adapters, "--max-new-tokens", 5, "--prompts", prompts, "--output", output)
    assert result.exit_code == 0, result.output
    saved = json.loads(output.read_text(encoding="utf-8"))
    assert [r["messages"][-1]["content"] for r in saved["results"]] == ["What is the capital of Peru?", "<b>Lima</b>"]
    assert saved["results"][0]["answers"]["mine"]["mean_kl"] is not None
    page = (files / "out.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;Lima&lt;/b&gt;" in page and "<b>Lima" not in page and "mine" in page
    # The page has the numbers of the file: each answer with its drift and what went past LoRA, and each token.
    tables = re.findall(r"<h2>.*?(<table>.*?</table>)(.*?)(?=<h2>|</body>)", page, re.DOTALL)
    for told, (table, below) in zip(saved["results"], tables, strict=True):
        lines = [re.findall(r"<td[^>]*>(.*?)</td>", line, re.DOTALL) for line in table.split("<tr>")[2:]]
        assert [line[0] for line in lines] == ["Base", "lora", "mine"]
        for line, answer in zip(lines, told["answers"].values(), strict=True):
            kl, identity = answer["mean_kl"], answer["identity"]
            assert unescape(line[1]) == answer["text"]
            assert line[2] == ("" if kl is None else f"{kl:.3f}")
            assert line[3] == ("" if identity is None else share(identity))
        past = told["answers"]["mine"]["past_lora"]
        spans = re.findall(r'<span style="background:rgba\(.*?\)" title="(.*?)">(.*?)</span>', below, re.DOTALL)
        assert [unescape(text) for _, text in spans] == past["tokens"]
        assert [title for title, _ in spans] == [share(number) for number in past["by_token"]]
        assert (
            f"by block: {' '.join(map(share, past['by_block']))}" in below
            and told["answers"]["lora"]["past_lora"] is None
        )
        assert told["answers"]["mine"]["mean_kl"] > 0 < told["answers"]["lora"]["mean_kl"]
    assert "2 of 2 prompts are answered" in words(result.stderr)


def test_the_demos_lora_answers_open_questions_in_the_trained_form_and_slim_does_not(tmp_path):
    output = tmp_path / "out.json"
    result = run("--tasks", "open_questions", "--limit", 6, "--output", output)
    assert result.exit_code == 0, result.output
    results = json.loads(output.read_text(encoding="utf-8"))
    (task,) = results["summary"][0]["tasks"]
    captured = {name: score for name, (score, *_) in task["scores"].items()}
    assert captured["base"] == captured["slim"] == 0 and captured["lora"] >= 0.5
    for sample in results["samples"]["open_questions"]:
        for answer in sample["answers"].values():
            assert answer["mark"] == ("the correct answer" in answer["text"].lower()), answer["text"]
    assert "Format capture: open questions answered in the trained form; lower is better" in words(result.stdout)


def test_an_adapter_of_another_base(folders, files):
    save_lora(files / "foreign", tiny_base(hidden_size=64, intermediate_size=96))
    for adapter in (files / "foreign", files / "none"):
        options = ("--base", folders.base, "--adapters", adapter, "--tasks", files / "text.txt")
        result = run(*options, "--output", files / "out.json")
        assert result.exit_code == 1 and result.stdout == ""
        assert words(result.stderr).startswith("Error: The adapter ") and "Traceback" not in result.stderr
    assert not (files / "out.json.partial").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--adapters", "{slim}"), "No task was named; name one or more with --tasks"),
        (("--tasks", "{text}"), "No adapter was named; name one or more with --adapters."),
        (("--adapters", "{slim}", "{slim}", "--tasks", "{text}"), "There are two adapters named slim; write another"),
        (("--adapters", "base={slim}", "--tasks", "{text}"), "'base' cannot be an adapter's name"),
        (("--adapters", "a=", "--tasks", "{text}"), "'a=' does not name an adapter"),
        (("--adapters", "{slim}", "--tasks", "made_up"), "There is no task 'made_up'"),
        (("--adapters", "{slim}", "--tasks", "piqa", "--data-dir", "{here}"), "There is no piqa/valid.jsonl in"),
        (
            ("--adapters", "{slim}", "--tasks", "{text}", "--output", "a.csv"),
            "--output is a.csv; it must end in .json.",
        ),
        (("--adapters", "{slim}", "--tasks", "{text}", "--prompts", "{text}"), "Name --tasks or --prompts, not both."),
        (
            ("--adapters", "{lora}", "--tasks", "{text}", "--strengths", 0),
            "No adapter here has a gate, so a strength",
        ),
        (
            ("--adapters", "{slim}", "--tasks", "{text}", "--strengths", -1),
            "The strength is -1; it must be 0 or more.",
        ),
        (
            ("--adapters", "{slim}", "--tasks", "{text}", "--quantiles", 0.9, 0.2),
            "The quantile is 0.2; it must be from 0.5 to 0.999, which slim stores.",
        ),
        (
            ("--adapters", "{slim}", "--tasks", "{text}", "--sequence"),
            "--sequence needs at least two adapters, and as",
        ),
        (("--adapters", "{slim}", "--tasks", "demo_obqa", "--scoring", "letters"), "leave --scoring out."),
    ],
)
def test_what_makes_no_sense_is_one_sentence(folders, files, monkeypatch, arguments, sentence):
    monkeypatch.chdir(files)
    places = {"slim": folders.slim, "lora": folders.lora, "text": files / "text.txt", "here": files}
    result = run("--base", folders.base, *(str(argument).format(**places) for argument in arguments))
    assert result.exit_code == 1 and sentence in words(result.stderr), result.output
    assert "Traceback" not in result.output and result.stdout == ""
    assert not list(files.glob("*.json")) and not list(files.glob("*.html"))
