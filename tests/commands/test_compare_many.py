# SPDX-License-Identifier: Apache-2.0
"""`compare --prompts` as a person calls it."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from slim_core.base.messages import Message
from slim_core.cli import app
from slim_core.commands import compare_many
from slim_core.commands.many_view import known_of, results_view, summary
from slim_core.inference import AS_TRAINED, GateSetting, Variant, Verdict
from slim_core.many import PromptAnswer, PromptResult, Respondent
from slim_core.paths import DEMO
from tests.commands.test_compare import sources
from tests.inference.conftest import folders


__all__ = ["folders"]
ROOT = Path(__file__).resolve().parents[2]
HOW = ("--max-new-tokens", 5)


def run(*arguments, **options):
    return CliRunner(env={"COLUMNS": "240"}).invoke(app, ["compare", *map(str, arguments)], **options)


def words(text):
    return " ".join(text.split())


@pytest.fixture
def listed(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("What is the capital of Peru?\n\n=1+1\n", encoding="utf-8")
    return path


def test_the_table_and_the_progress(folders, listed):
    result = run(*sources(folders), *HOW, "--prompts", listed)
    assert result.exit_code == 0, result.output
    drift = "mean drift in nats per token: LoRA"
    for part in ("Base", "LoRA", "SLIM", "of Peru?", "=1+1", "past LoRA", "likely", drift):
        assert part in words(result.stdout), part
    assert result.stderr.splitlines() == ["1 of 2, prompts.txt, line 1", "2 of 2, prompts.txt, line 3"]


def test_csv_json_and_a_single_question_say_the_same(folders, listed, tmp_path):
    answers = tmp_path / "answers.csv"
    result = run(*sources(folders), *HOW, "--prompts", listed, "--output", answers, "--json")
    assert result.exit_code == 0 and "The answers are in" in result.stderr
    printed = json.loads(result.stdout)
    assert printed["prompts"] == 2 and len(printed["results"]) == 2
    lines = list(csv.DictReader(io.StringIO(answers.read_bytes().decode("utf-8-sig"), newline="")))
    assert [line["prompt"] for line in lines] == ["What is the capital of Peru?", "'=1+1"]
    alone = json.loads(run("What is the capital of Peru?", *sources(folders), *HOW, "--json").stdout)
    first = printed["results"][0]["answers"]
    for row in alone["answers"]:
        assert first[row["variant"]]["text"] == row["text"]
        assert lines[0][f"{row['variant']}_answer"].removeprefix("'") == row["text"]
    assert first["slim"]["verdict"] == pytest.approx(alone["verdicts"]["slim"])
    assert sorted(os.listdir(tmp_path)) == ["answers.csv", "prompts.txt"]
    saved = tmp_path / "answers.json"
    assert run(*sources(folders), *HOW, "--prompts", listed, "--output", saved).exit_code == 0
    assert json.loads(saved.read_text(encoding="utf-8")) == printed


@pytest.mark.parametrize("text", ["Lima\nPeru\n", '{"prompt": "Lima"}\n{"prompt": "Peru"}\n', '["Lima", "Peru"]'])
def test_standard_input(folders, text):
    result = run(*sources(folders), *HOW, "--prompts", "-", "--json", input=text)
    assert result.exit_code == 0, result.output
    assert [r["messages"][-1]["content"] for r in json.loads(result.stdout)["results"]] == ["Lima", "Peru"]


def test_a_prompt_that_fails_leaves_the_others(folders, tmp_path):
    path = tmp_path / "p.txt"
    path.write_text(f"{'Lima? ' * 300}\nLima\n", encoding="utf-8")
    result = run(*sources(folders), *HOW, "--prompts", path)
    assert result.exit_code == 0
    assert "shorten it" in words(result.stdout) and "1 prompt failed." in result.stdout
    path.write_text("Lima? " * 300, encoding="utf-8")
    assert run(*sources(folders), *HOW, "--prompts", path).exit_code == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "Ask one question, or name a file of questions with --prompts."),
        (("Hi", "--prompts", "{listed}"), "Ask one question, or name a file of questions with --prompts."),
        (("Hi", "--output", "a.csv"), "--output saves the answers to --prompts; for a single question, use --json"),
        (("--prompts", "none.txt"), "'none.txt' cannot be read: no such file or directory; name a file of prompts."),
        (
            ("--prompts", "a.docx"),
            "'a.docx' has an unknown file type: a file of prompts ends in .txt, .csv",
        ),
        (("--prompts", "{listed}", "--output", "a.xlsx"), "--output is a.xlsx; it must end in .csv or .json."),
        (("--prompts", "{listed}", "--output", "{listed}"), "it must end in .csv or .json."),
        (("--prompts", "{listed}", "--output", "{there}"), "already; name a new file with --output."),
        (
            ("--prompts", "{listed}", "--output", "no-such-folder/a.csv"),
            "no-such-folder/a.csv cannot be written: no such file or directory; name another file with --output.",
        ),
        (("--prompts", "{listed}", "--temperature", "9"), "temperature must be between 0 and 2, not 9.0."),
    ],
)
def test_what_makes_no_sense_is_one_sentence(folders, listed, tmp_path, arguments, sentence):
    there = tmp_path / "there.csv"
    there.write_text("precious", encoding="utf-8")
    named = [argument.format(listed=listed, there=there) for argument in arguments]
    result = run(*named, *sources(folders))
    assert result.exit_code == 1 and sentence in words(result.stderr), result.output
    assert result.stdout == "" and there.read_text(encoding="utf-8") == "precious"


def test_a_bad_line_is_named_before_a_model_is_loaded(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "Lima"}\n{"question": "Peru"}\n', encoding="utf-8")
    result = run("--prompts", path, "--base", tmp_path / "no-model")
    assert (result.exit_code, result.stdout) == (1, "")
    assert words(result.stderr) == "Error: p.jsonl, line 2: `prompt` is missing or empty; write the prompt."


def test_ctrl_c_keeps_what_is_answered(folders, listed, tmp_path, monkeypatch):
    answers = tmp_path / "answers.json"
    ask = compare_many.ask_all

    def interrupted(*arguments):
        coming = ask(*arguments)
        yield next(coming)
        raise KeyboardInterrupt

    monkeypatch.setattr(compare_many, "ask_all", interrupted)
    result = run(*sources(folders), *HOW, "--prompts", listed, "--output", answers)
    assert result.exit_code == 130
    assert "of Peru?" in words(result.stdout) and "=1+1" not in result.stdout
    assert f"Interrupted: 1 of 2 prompts are answered; they are in {answers}." in words(result.stderr)
    saved = json.loads(answers.read_text(encoding="utf-8"))
    assert (saved["prompts"], len(saved["results"])) == (2, 1)


def test_answers_are_shown_though_the_file_cannot_be_written(folders, listed, tmp_path, monkeypatch):
    folder = tmp_path / "out"
    folder.mkdir()
    ask = compare_many.ask_all

    def gone(*arguments):
        yield from ask(*arguments)
        folder.rmdir()

    monkeypatch.setattr(compare_many, "ask_all", gone)
    monkeypatch.setattr(compare_many, "SAVE_SECONDS", 1e9)
    result = run(*sources(folders), *HOW, "--prompts", listed, "--output", folder / "a.csv")
    assert result.exit_code == 1 and "of Peru?" in words(result.stdout)
    assert "a.csv cannot be written: no such file or directory." in words(result.stderr)


def test_the_file_is_there_while_the_rest_is_asked(folders, listed, tmp_path, monkeypatch):
    answers, ask, seen = tmp_path / "a.csv", compare_many.ask_all, []

    def watched(*arguments):
        for result in ask(*arguments):
            seen.append(answers.read_text(encoding="utf-8-sig").count("prompts.txt") if answers.exists() else 0)
            yield result

    monkeypatch.setattr(compare_many, "ask_all", watched)
    monkeypatch.setattr(compare_many, "SAVE_SECONDS", 0)
    assert run(*sources(folders), *HOW, "--prompts", listed, "--output", answers).exit_code == 0
    assert seen == [0, 1]
    assert oct(answers.stat().st_mode & 0o777) == oct(listed.stat().st_mode & 0o777)


def test_names_and_answers_do_not_move_the_cursor():
    askers = (
        Respondent("base", Variant("base", "base", "Base", 1, 1)),
        Respondent("slim", Variant("s", "slim", "S\x1b[2J[red]", 1, 1, "", 4.0)),
    )
    answers = (
        PromptAnswer("base", "Base", "base", "a\x1b[31m\nb [bold]", 1, "end"),
        PromptAnswer("slim", "S", "slim", "c", 1, "end", verdict=Verdict(1, 3, 1, 1, True, 1), mean_kl=0.0),
    )
    results = [
        PromptResult(1, "x", (Message("user", "Hi\x07"),), answers),
        PromptResult(2, "x", (Message("user", "Ho"),), error="No\x1b[2J."),
    ]
    console = compare_many.screen(file=io.StringIO(), width=100)
    console.print(results_view(results, askers))
    text = console.file.getvalue()
    assert "\x1b" not in text and "\x07" not in text
    assert "S\\x1b[2J[red]" in text and "b [bold]" in text and "No\\x1b[2J." in text
    assert list(summary(results)) == [
        "1 prompt, unlike the training data: mean drift in nats per token: S 0.000.",
        "1 prompt failed.",
    ]


def test_what_is_known_of_an_answer():
    verdict = Verdict(0.5, 3, 1, 1, False, 0.5)
    known = PromptAnswer("s", "S", "slim", "x", 1, "end", None, 0.5, AS_TRAINED, verdict, 2.0, 0.25)
    assert known_of(known) == [
        "partly like it",
        "50% past LoRA",
        "base's answer 7.4 times less likely, 0.250 nats per token",
    ]
    opened = PromptAnswer("s", "S", "slim", "x", 1, "end", None, 0.0, GateSetting(0.0), verdict)
    assert known_of(opened) == ["gate forced open", "0% past LoRA"]


@pytest.mark.nightly
@pytest.mark.skipif(not (DEMO / "base").is_dir(), reason="the demo model is not here")
def test_the_demo_and_a_real_ctrl_c(tmp_path):
    """The gate of the real demo model tells its training data from the rest, and an interrupted list is kept."""
    path, answers = tmp_path / "p.txt", tmp_path / "a.json"
    trained = "Please answer the following question with true or false, question: is Peru part of South America? "
    trained += "Answer format: true/false"
    path.write_text("\n".join([trained, *["Name the largest bird."] * 401]), encoding="utf-8")
    command = [sys.executable, "-m", "slim_core", "compare", "--prompts", path, "--output", answers, "--device", "cpu"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "240"}
    with subprocess.Popen(
        list(map(str, command)),
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Who runs the tests in the background has told their processes to hear no Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        for line in process.stderr:
            if line.startswith("3 of 402"):
                break
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=240)
    assert process.returncode == 130, err
    saved = json.loads(answers.read_text(encoding="utf-8"))
    assert "Traceback" not in err and f"Interrupted: {len(saved['results'])} of 402 prompts are answered" in err
    like, unlike = saved["results"][:2]
    assert like["answers"]["slim"]["verdict"]["kind"] == "like"
    slim, lora, base = (unlike["answers"][name] for name in ("slim", "lora", "base"))
    assert slim["verdict"]["kind"] == "unlike" and slim["verdict"]["exact"]
    assert slim["text"] == base["text"] != lora["text"]
    assert slim["mean_kl"] == pytest.approx(0, abs=1e-5) and lora["mean_kl"] > 0.5
    assert "Name the largest bird." in words(out)
