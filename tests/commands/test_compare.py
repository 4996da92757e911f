# SPDX-License-Identifier: Apache-2.0
"""`compare` as a person calls it."""

import json
import math
import shutil

import pytest
import torch
from typer.testing import CliRunner

from slim_core.cli import app
from slim_core.commands import compare as command
from slim_core.commands.compare_view import drift_sentence, identity_by_block, verdict_sentence
from slim_core.inference import Drift, RoutingRecord, Sampling, Variant, VariantDrift, Verdict, load_engine
from tests.inference.conftest import QUESTION, folders, ids, last, rows


__all__ = ["folders"]


def run(*arguments):
    return CliRunner().invoke(app, ["compare", "What is the capital of Peru?", *map(str, arguments)])


def sources(folders):
    return ("--base", folders.base, "--lora", folders.lora, "--slim", folders.slim, "--device", "cpu")


def test_json_holds_what_the_engine_says(folders):
    options = ("--max-new-tokens", 9, "--temperature", 0.8, "--top-k", 30, "--seed", 7)
    result = run(*sources(folders), *options, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    engine = load_engine(folders.base, lora=folders.lora, slim=folders.slim, device="cpu")
    step = last(engine, rows(QUESTION, routing=True), Sampling(max_new_tokens=9, temperature=0.8, top_k=30, seed=7))
    assert [tuple(answer["token_ids"]) for answer in report["answers"]] == ids(step)
    assert [answer["text"] for answer in report["answers"]] == [row.text for row in step.rows]
    shares = report["identity_by_block"]["slim"]
    identity = step.routing[2].weights[..., 3:].sum(-1)
    prompt = step.rows[2].prompt_tokens
    assert [share["block"] for share in shares] == [0, 1]
    assert shares[1]["answer"] == pytest.approx(float(identity[7:, prompt:].mean()), abs=1e-5)
    assert shares[0]["prompt"] == pytest.approx(float(identity[:7, :prompt].mean()), abs=1e-5)
    assert set(report["times_less_likely"]) == {"lora", "slim"}


def test_the_table_shows_all_answers_identity_and_drift(folders):
    result = run(*sources(folders), "--max-new-tokens", 5)
    assert result.exit_code == 0
    for words in (
        "Base",
        "LoRA",
        "SLIM",
        "rank 2, 3 + 2",
        "5 tokens",
        "share that bypasses LoRA",
        "less likely for LoRA",
    ):
        assert words in " ".join(result.stdout.split()), words


def test_the_verdict_and_the_strength_of_the_gate(folders):
    result = run(*sources(folders), "--max-new-tokens", 4, "--json")
    report = json.loads(result.stdout)
    verdict = report["verdicts"]["slim"]
    assert set(report["verdicts"]) == {"slim"} and report["strength"] is None
    assert set(verdict) == {"kind", "identity", "distance", "reference", "closed", "exact", "closing"}
    shut = report["times_less_likely"]
    assert set(shut) == {"lora", "slim"}
    result = run(*sources(folders), "--max-new-tokens", 4, "--strength", 0, "--json")
    report = json.loads(result.stdout)
    assert report["verdicts"]["slim"]["closed"] == 0 and report["strength"] == 0
    # A context's first tokens may have no gate that opens.
    assert all(block["gate_answer"] == 1 for block in report["identity_by_block"]["slim"])
    # It reads the base's answer with the gate that it answered with.
    forced = report["times_less_likely"]
    assert forced["lora"] == shut["lora"] and forced["slim"] != shut["slim"]
    result = run(*sources(folders), "--max-new-tokens", 4, "--strength", 0)
    assert "Gate forced open: SLIM answers with its LoRA experts." in result.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--strength", -1), "The strength is -1; it must be 0 or more."),
        (("--strength", "inf"), "The strength is inf; it must be 0 or more."),
        (("--quantile", 0.2), "The quantile is 0.2; it must be from 0.5 to 0.999, which slim stores."),
        (("--quantile", 1), "The quantile is 1.0; it must be from 0.5 to 0.999, which slim stores."),
    ],
)
def test_a_gate_that_makes_no_sense(folders, arguments, sentence):
    result = run(*sources(folders), *arguments)
    assert result.exit_code == 1 and sentence in " ".join(result.output.split())


@pytest.mark.parametrize("asked", ["strength", "quantile"])
def test_a_gate_that_is_not_there(folders, asked):
    result = run("--base", folders.base, "--lora", folders.lora, "--device", "cpu", f"--{asked}", 0.9)
    assert result.exit_code == 1 and f"No adapter here has a gate, so a {asked} has no effect." in result.output


def test_where_the_gate_begins_to_close(folders):
    references = []
    for quantile in (None, 0.5, 0.999):
        asked = () if quantile is None else ("--quantile", quantile)
        report = json.loads(run(*sources(folders), "--max-new-tokens", 4, "--json", *asked).stdout)
        assert report["quantile"] == quantile and report["strength"] is None
        references.append(report["verdicts"]["slim"]["reference"])
    trained, sooner, later = references
    assert sooner < trained < later


def test_verdicts_in_words():
    def verdict(identity, exact=False):
        return Verdict(identity, 3.0, 1.0, 0.5, exact, identity)

    numbers = "%; distance 3.00, up to 1.00 is like the training data; 50% of the gates are closed."
    assert verdict_sentence("SLIM", verdict(1.0, True), same=True) == (
        "Unlike the training data: SLIM gives the base's own answer, token for token, for every gate is 0 at every "
        f"token. Past LoRA: 100{numbers}"
    )
    assert verdict_sentence("SLIM", verdict(0.95), same=True) == (
        "Unlike the training data: SLIM sent most of it past LoRA, and the answers are the same. Past LoRA: "
        f"95{numbers}"
    )
    assert "token for token" not in verdict_sentence("SLIM", verdict(1.0, True), same=False)
    assert verdict_sentence("SLIM", verdict(0.5), same=False).startswith(
        "Partly like the training data: SLIM sent some of it past LoRA."
    )
    assert verdict_sentence("SLIM", verdict(0.1), same=True).startswith("Like the training data: SLIM answers with")
    assert verdict_sentence("SLIM", Verdict(0.5, 0.5, 1.0, 0.0, False, 0.0), same=False).startswith(
        "Like the training data, but much of it went past SLIM's LoRA experts. Past LoRA: 50%"
    )


def test_the_name_of_a_folder_is_one_line_without_control_characters(folders, tmp_path):
    named = shutil.copytree(folders.lora, tmp_path / "a\nb\x1b[31m\u202e[red]")
    result = run("--base", folders.base, "--adapter", named, "--device", "cpu", "--max-new-tokens", 4)
    assert result.exit_code == 0, result.output
    assert "a b [31m [red]" in result.stdout and "\x1b" not in result.stdout and "\u202e" not in result.stdout


def test_the_base_alone(folders):
    result = run("--base", folders.base, "--device", "cpu", "--max-new-tokens", 4)
    assert result.exit_code == 0 and "LoRA" not in result.stdout


@pytest.mark.parametrize(("flag", "dtype"), [("--load-4bit", "4-bit nf4"), ("--load-8bit", "8-bit")])
def test_a_quantised_base(folders, flag, dtype):
    result = run(*sources(folders), flag, "--max-new-tokens", 3, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["model"]["dtype"] == dtype
    both = run(*sources(folders), "--load-4bit", "--load-8bit")
    assert both.exit_code == 1 and "4 bits or in 8 bits, not both" in both.stderr


def test_without_a_demo_the_sentence_says_how_to_make_it(monkeypatch, tmp_path):
    monkeypatch.setattr(command, "DEMO", tmp_path)
    result = run()
    assert result.exit_code == 1 and "python -m slim_core demo build" in result.stderr


@pytest.mark.parametrize(("option", "words"), [(("--temperature", 9), "temperature must be"), (("--stop", ""), None)])
def test_settings(option, words, folders):
    result = run(*sources(folders), "--max-new-tokens", 3, *option)
    assert result.exit_code == (1 if words else 0)
    assert words is None or words in result.stderr


def test_a_question_that_is_too_long_is_an_error_of_every_row(folders):
    result = CliRunner().invoke(app, ["compare", "Lima? " * 300, *map(str, sources(folders))])
    assert result.exit_code == 1 and "shorten it" in " ".join(result.stdout.split())


def test_identity_is_averaged_over_the_linears_of_a_block():
    weights = torch.tensor([[[0.25, 0.75]], [[0.75, 0.25]], [[1.0, 0.0]]])
    routing = RoutingRecord("s", ("a",), 1, ("x.0.q", "x.0.k", "x.1.q"), (0, 0, 1), 1, weights, *[weights[..., 0]] * 4)
    assert identity_by_block(routing) == [
        {"block": 0, "prompt": 0.5, "answer": None, "gate_prompt": 0.5, "gate_answer": None},
        {"block": 1, "prompt": 0.0, "answer": None, "gate_prompt": 1.0, "gate_answer": None},
    ]


def test_the_drift_sentence():
    names = [Variant("l", "lora", "LoRA", 1, 1), Variant("s", "slim", "SLIM", 1, 1), Variant("t", "slim", "T", 1, 1)]
    readings = (
        VariantDrift("l", torch.tensor([math.log(4), math.log(2)]), torch.tensor([0.5, 1.5])),
        VariantDrift("s", torch.tensor([-math.log(2), 0.0]), torch.tensor([0.0, 0.25])),
        VariantDrift("t", torch.tensor([0.001, 0.0]), torch.tensor([0.0, 0.0])),
    )
    assert drift_sentence(names, Drift(("a", "b"), readings)) == (
        "The base's own answer is, compared with the base, 8.0 times less likely for LoRA and 2.0 times more likely "
        "for SLIM and about as likely for T. Mean drift in nats per token: LoRA 1.000, SLIM 0.125, T 0.000."
    )
