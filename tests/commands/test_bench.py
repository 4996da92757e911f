# SPDX-License-Identifier: Apache-2.0
"""`bench` as a person calls it, on models of no size; what is in its file."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from typer.testing import CliRunner

from slim_core.baselines import METHODS
from slim_core.cli import app
from slim_core.evaluation.bench import memory, turns
from slim_core.evaluation.bench.shapes import random_base
from tests.inference.conftest import folders
from tests.serving.conftest import KEY, engine, serve, serve_app


__all__ = ["engine", "folders", "serve", "serve_app"]
TINY = ("--shape", "tiny", "--rank", "2", "--rounds", "1", "--device", "cpu")


@pytest.fixture(autouse=True)
def short_turns(monkeypatch):
    monkeypatch.setattr(turns, "LEAST_SECONDS", 1e-3)


def bench(tmp_path, name, *arguments, **environment):
    file = tmp_path / "results.json"
    options = [name, *map(str, arguments), "--json", str(file)]
    result = CliRunner().invoke(app, ["bench", *options], env={"COLUMNS": "200", **environment})
    assert result.exit_code == 0, result.output
    results = json.loads(file.read_text(encoding="utf-8"))
    assert results["bench"] == name and results["machine"]["date"] and results["settings"].get("rounds", 1) == 1
    return results, result.stdout


def by_way(case, measure):
    return {row["way"]: row for row in case["rows"] if row["measure"] == measure}


def test_decode(tmp_path):
    numbers = ("--prompt", 6, "--tokens", 3, "--experts", 3, "--experts", 5)
    results, said = bench(tmp_path, "decode", *TINY, *numbers)
    (case,) = results["cases"]
    ways = by_way(case, "token")
    ours = {"base", "lora", "slim", "slim, 5 experts", "slim, gate closed"}
    ours |= {"the base in every row", "all in one batch"}
    plain = {"transformers: base", "PEFT: LoRA, unmerged", "PEFT: SLIM"}
    others = {"PEFT: MixLoRA", "PEFT: X-LoRA, no cache", "PEFT: Arrow"}
    assert ways.keys() == ours | plain | others and "left_out" not in results
    assert by_way(case, "answer").keys() == ways.keys() | {"one after another"}
    for way, row in ways.items():
        answers = 3 if way in ("the base in every row", "all in one batch") else 1
        assert row["facts"]["tokens_per_second"] == pytest.approx(answers / row["seconds"])
    moved = {way: row["facts"]["bytes"] for way, row in ways.items() if "bytes" in row["facts"]}
    assert moved.keys() == ours | plain
    assert moved["base"] == moved["slim, gate closed"] < min(moved["lora"], moved["slim"])
    assert moved["all in one batch"] == moved["lora"] + moved["slim"] - moved["base"]
    base = ways["base"]
    share = base["facts"]["bytes"] / base["seconds"] / results["copy_bandwidth"]
    assert base["facts"]["share_of_copy_bandwidth"] == pytest.approx(share)
    reading = by_way(case, "first token")["base"]
    work = 2 * 6 * (4 * 32 * 32 + 3 * 32 * 64)
    assert reading["facts"]["share_of_matrix_rate"] == pytest.approx(
        work / reading["seconds"] / results["matrix_rate"]
    )
    assert base["ratios"]["base"] == 1 and set(base["ratios"]) == {"base", "PEFT: LoRA, unmerged"}
    assert all(name in said for name in ways)


@pytest.mark.parametrize("own", [True, False])
def test_compare(tmp_path, folders, own):
    where = ("--base", folders.base, "--lora", folders.lora, "--slim", folders.slim) if own else TINY[:4]
    results, said = bench(tmp_path, "compare", *where, "--tokens", 3, "--words", 20, "--rounds", 1, "--device", "cpu")
    case, talk = results["cases"]
    ways, answers = by_way(case, "token"), by_way(case, "answer")
    assert {"base alone", "slim alone", "all in one batch"} <= ways.keys() and "one after another" not in ways
    assert answers.keys() == {*ways, "one after another"} and all(way in said for way in answers)
    assert ways["base alone"]["ratios"] == {"base alone": 1}
    # Of three tokens, the first is read from the prompt.
    assert all(2 * way["seconds"] < answers[name]["seconds"] for name, way in ways.items())
    firsts = by_way(talk, "first token")
    assert talk["title"] == "third turn of a conversation, 66 tokens" and "all in one batch, kept" in said
    assert firsts["base alone, kept"]["ratios"].keys() == {"base alone, read anew", "all in one batch, read anew"}
    assert results["experts_used"]["lora"] == 1 and results["dtype"] == "float32"


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
def test_train(tmp_path):
    results, _ = bench(tmp_path, "train", *TINY, "--batch", 1, "--length", 8)
    ways = by_way(results["cases"][0], "step")
    assert list(ways) == ["PEFT: LoRA", "SLIM", "PEFT: LoRA, checkpointing", "SLIM, checkpointing"]
    for row in ways.values():
        assert row["facts"]["tokens_per_second"] == pytest.approx(8 / row["seconds"])


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
def test_any_method_is_trained_beside_lora(tmp_path):
    methods = ["dora", "lora-mlp", "oft", "loramoe", "mixlora", "mixlora-dy", "mola", "disel", "slim", "slim"]
    named = [option for method in methods for option in ("--method", method)]
    results, _ = bench(tmp_path, "train", *TINY, "--batch", 1, "--length", 8, *named)
    ways = by_way(results["cases"][0], "step")
    titles = [METHODS[method].title for method in dict.fromkeys(methods)]
    assert list(ways)[: len(titles) + 1] == ["PEFT: LoRA", *titles]
    trained = {name: row["facts"]["parameters"] for name, row in ways.items()}
    assert 0 < trained["OFT"] < trained["LoRA on the MLPs"] < trained["PEFT: LoRA"] < trained["SLIM"]
    assert trained["SLIM"] == trained["SLIM, checkpointing"]


@pytest.mark.parametrize("method", ["lora", "lora-rewound", "other"])
@pytest.mark.parametrize("command", ["train", "memory"])
def test_a_method_without_a_training_of_its_own_is_refused(command, method):
    result = CliRunner().invoke(app, ["bench", command, "--method", method], env={"COLUMNS": "200"})
    assert result.exit_code == 1 and not result.stdout
    assert "--method must be one of dora, slim, " in result.stderr and f"not {method}." in result.stderr


@pytest.mark.parametrize(
    ("own_process", "four_bit"), [(False, False), (False, True), pytest.param(True, False, marks=pytest.mark.nightly)]
)
def test_memory(tmp_path, own_process, four_bit, monkeypatch):
    if four_bit:
        pytest.importorskip("bitsandbytes")
    if not own_process:
        monkeypatch.setattr(memory, "_in_own_process", lambda run, *arguments: run(*arguments))
    sizes = ("--experts", 3, "--prompt", 6, "--tokens", 3, "--batch", 1, "--length", 8)
    options = (*TINY[:4], "--device", "cpu", *sizes, *(["--load-4bit"] if four_bit else []))
    results, said = bench(tmp_path, "memory", *options)
    answers, training = results["cases"]
    alone, together = answers["rows"]
    lora, slim = training["rows"]
    assert all(row["way"] in said for row in (alone, together, lora, slim))
    base = random_base("tiny", "cpu", torch.float32, 0, four_bit)
    own_bytes = sum(parameter.nbytes for parameter in base.parameters())
    assert own_bytes <= alone["weights"] < min(together["weights"], lora["weights"], slim["weights"])
    if sys.platform == "linux" and own_process:
        assert together["peak"] > alone["peak"] > 0 and lora["peak"] > 0 < slim["peak"]


def test_a_base_in_four_bits_has_random_weights_too():
    pytest.importorskip("bitsandbytes")
    base, plain = (random_base("tiny", "cpu", torch.float32, 0, four_bit) for four_bit in (True, False))
    assert base.model.layers[0].mlp.up_proj.weight.nbytes * 8 == plain.model.layers[0].mlp.up_proj.weight.nbytes
    ids = torch.arange(5, 20)[None]
    logits = base(input_ids=ids).logits
    assert logits.isfinite().all() and logits.std() > 0
    assert base.lm_head.weight is base.model.embed_tokens.weight


def test_load(tmp_path):
    numbers = ("--clients", 1, "--clients", 3, "--questions", 3, "--tokens", 2)
    results, _ = bench(tmp_path, "load", *TINY, *numbers)
    rows = results["cases"][0]["rows"]
    assert [(row["clients"], row["answers"], row["lost"]) for row in rows] == [(1, 3, 0), (3, 3, 0)]


def test_a_run_that_is_stopped_leaves_what_it_has(tmp_path, monkeypatch):
    from slim_core.evaluation.bench import layer

    real, seen = layer.time_setting, []

    def stopped(setting, *arguments):
        if seen:
            raise KeyboardInterrupt
        seen.append(setting)
        return real(setting, *arguments)

    monkeypatch.setattr(layer, "time_setting", stopped)
    file = tmp_path / "results.json"
    numbers = ("--width", "16", "--tokens", "1", "--rounds", "1", "--device", "cpu", "--json", str(file))
    result = CliRunner().invoke(app, ["bench", "layer", *numbers])
    assert result.exit_code != 0
    (case,) = json.loads(file.read_text(encoding="utf-8"))["cases"]
    assert "1 tokens" in case["title"] and case["rows"]


def test_serve(tmp_path, serve, engine):
    server = serve(engine, places=1, key=KEY)
    engine.length, engine.delay = 3, dict.fromkeys(("base", "lora", "slim"), 0.02)
    arguments = ("--url", server.url, "--clients", 1, "--clients", 2, "--questions", 4, "--rounds", 1)
    results, _ = bench(tmp_path, "serve", *arguments, SLIM_API_KEY=KEY)
    assert results["models"] == ["base", "lora", "slim"]
    alone, both = results["cases"][0]["rows"]
    assert (alone["answers"], alone["refused"], alone["lost"]) == (4, 0, 0)
    # There is one place, so one of two who ask at once is turned away.
    assert both["refused"] > 0 == both["lost"] and both["answers"] + both["refused"] == 4


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("serve", "--url", "http://127.0.0.1:9/v1"), "No server that speaks OpenAI's protocol answers at http://127"),
        (("train", "--json", "{file}"), "exists already: name a new file."),
        (("train", "--json", "{file}.d/new.json"), "make it first."),
        (("compare", "--base", "nowhere/at-all"), "nowhere/at-all"),
    ],
)
def test_what_cannot_be_measured_is_a_sentence(tmp_path, arguments, sentence):
    file = tmp_path / "there"
    file.write_text("mine", encoding="utf-8")
    result = CliRunner().invoke(app, ["bench", *(argument.format(file=file) for argument in arguments)])
    assert result.exit_code == 1 and sentence in result.stderr.replace("\n", " ")
    assert "Traceback" not in result.output and file.read_text(encoding="utf-8") == "mine"
