# SPDX-License-Identifier: Apache-2.0
"""`python -m slim_core adapter …` as a user types it."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from slim_core.cli import app
from slim_core.commands.adapter import SENTENCES
from slim_core.outside.files import CONFIG, WEIGHTS
from tests.adapters.small import config, fill_statistics, lora, tensors
from tests.conftest import tiny_llama
from tests.method.small import logits, slim
from tests.training.conftest import small_tokenizer


CHECKS = ["readable", "format", "size", "fits this base", "weights finite", "changes something", "ready"]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A base with its tokenizer, and a LoRA and a SLIM adapter of it."""
    root = tmp_path_factory.mktemp("world")
    torch.manual_seed(0)
    tiny_llama(vocab_size=320).save_pretrained(root / "base")
    small_tokenizer().save_pretrained(root / "base")
    for name, made in {"lora": lora(), "slim": slim(alpha=1.0)}.items():
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(root / "base"), made)
        fill_statistics(model)
        model.save_pretrained(root / name)
    shutil.copytree(root / "lora", root / "fp8")
    tensors(lambda saved: {key: t.to(torch.float8_e4m3fn) for key, t in saved.items()})(root / "fp8")
    return root


def run(*arguments: object):
    return CliRunner().invoke(app, ["adapter", *map(str, arguments)])


def lines(output: str) -> list[tuple[str, str, str]]:
    return [re.fullmatch(r"(\w+) +([a-z ]+): (.*)", line).groups() for line in output.splitlines()]


@pytest.mark.parametrize("kind", ["lora", "slim"])
def test_a_good_adapter_passes_every_check(kind, world):
    result = run("check", world / kind, "--base", world / "base")
    assert result.exit_code == 0, result.output
    assert [(state, name) for state, name, _ in lines(result.output)] == [("passed", name) for name in CHECKS]


def test_a_bad_one_fails_with_its_sentence(world, tmp_path):
    folder = shutil.copytree(world / "lora", tmp_path / "bad")
    config(r=0)(folder)
    result = run("check", folder, "--base", world / "base")
    assert result.exit_code == 1
    state, name, sentence = lines(result.output)[-1]
    assert (state, name) == ("failed", "format") and "`r` is 0; it must be a whole number from 1 to 1024." in sentence
    assert len(lines(result.output)) == 2


def test_without_a_base_that_is_said(world):
    result = run("check", world / "slim")
    assert result.exit_code == 0
    assert ("warning", "fits this base", "Not checked: no base model was given.") in lines(result.output)


def test_markup_in_a_file_is_only_text(world, tmp_path):
    folder = shutil.copytree(world / "lora", tmp_path / "bad")
    config(base_model_name_or_path="[red]x[/] <img onerror>")(folder)
    result = run("check", folder, "--base", world / "base")
    assert "'[red]x[/] <img onerror>'" in result.output and result.exit_code == 0


BAD_NAME = "out/" + "a" * 300
BAD = [
    (["check", "nowhere/at/all"], "'nowhere/at/all' is not a Hub id; it must be owner/name"),
    (["check", "./nowhere"], "There is no folder 'nowhere'"),
    (["check", ""], "The adapter's name is empty; name a folder or a Hub id"),
    (["check", "LORA", "--base", "a" * 5000], "The base model 'a{1,130}…' cannot be described: .{1,310}$"),
    (["check", "LORA", "--base", "BASE", "--base-revision", "v1"], "is a folder, which has no revision 'v1'"),
    (["check", "~nosuchuser/x"], "'~nosuchuser/x' begins with a user that is not on this machine"),
    (["info", "~nosuchuser/x"], "'~nosuchuser/x' begins with a user that is not on this machine"),
    (["check", "a" * 300], "'a+…' cannot be looked up: file name too long; name a folder or a Hub id"),
    (["check", "./" + "a" * 5000], "'./a+…' cannot be looked up: file name too long"),
    (["check", "LORA", "--base", ""], "--base is empty; name a folder or a Hub id"),
    (["check", "LORA", "--base", " "], "--base is empty; name a folder or a Hub id"),
    (["check", "FP8"], "has the dtype F8_E4M3; it must be BF16 or F16 or F32"),
    (["info", "FP8"], "has the dtype F8_E4M3; it must be BF16 or F16 or F32"),
    (["export", "SLIM", "OUT", "--base", ""], "--base is empty; name a folder or a Hub id"),
    (
        ["export", "SLIM", "/dev/null/x", "--base", "BASE"],
        "The LoRA cannot be written to '/dev/null/x': not a directory",
    ),
    (
        ["export", "SLIM", "/proc/x", "--base", "BASE"],
        "The LoRA cannot be written to '/proc/x': no such file",
    ),
    (["export", "SLIM", BAD_NAME, "--base", "BASE"], "The LoRA cannot be written to '.*': file name too long"),
    (["check", "FILE"], "is a file; name the folder that holds the adapter's two files"),
    (["check", "LORA", "--base", "./nowhere"], "The base model './nowhere' cannot be described"),
    (["info", "./nowhere"], "There is no folder 'nowhere'"),
    (["info", "BASE"], "Judging by .model.safetensors., this is a whole model, not an adapter: choose it as the base"),
    (["export", "LORA", "OUT", "--base", "BASE"], "This is a plain LoRA already, which PEFT can load directly; there"),
    (["export", "SLIM", "OUT", "--base", "./nowhere"], "There is no folder ./nowhere; name a folder or a Hub id"),
    (["export", "SLIM", "OUT", "--base", "a b"], "The base 'a b' is neither a folder nor a Hub id"),
    (["export", "SLIM", "SLIM", "--base", "BASE"], "exists and is not empty; name a new folder"),
    (["export", "SLIM", "OUT", "--base", "BASE", "--text", "nothing.txt"], "The text nothing.txt cannot be read"),
    (["export", "SLIM", "OUT", "--base", "BASE", "--text", "EMPTY"], "is empty; write one passage per line"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD, ids=[" ".join(arguments)[:60] for arguments, _ in BAD])
def test_mistakes_are_one_sentence_and_exit_code_one(arguments, words, world, tmp_path):
    (tmp_path / "empty").write_text("\n\n")
    paths = {
        "LORA": world / "lora",
        "SLIM": world / "slim",
        "BASE": world / "base",
        "FILE": world / "lora" / CONFIG,
        "OUT": tmp_path / "out",
        "EMPTY": tmp_path / "empty",
        "FP8": world / "fp8",
        BAD_NAME: tmp_path / BAD_NAME,
    }
    result = run(*(paths.get(argument, argument) for argument in arguments))
    assert result.exit_code == 1 and not (tmp_path / "out").exists()
    assert re.search(words, result.output), result.output
    assert "Traceback" not in result.output and isinstance(result.exception, SystemExit)


def test_an_export_makes_up_no_weights_of_the_base(world, tmp_path):
    base = shutil.copytree(world / "base", tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    del weights["model.layers.0.mlp.down_proj.weight"]
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    result = run("export", world / "slim", tmp_path / "out", "--base", base)
    assert result.exit_code == 1 and not (tmp_path / "out").exists()
    assert "The base model base cannot be loaded: its files lack 1 of its weights" in result.output


def test_an_adapter_whose_numbers_overflow_together_is_not_exported(world, tmp_path):
    targets = ["gate_proj", "up_proj", "down_proj"]
    base = AutoModelForCausalLM.from_pretrained(world / "base")
    model = get_peft_model(base, slim(alpha=4096.0, target_modules=targets, yield_strength=0.0))
    fill_statistics(model)
    model.save_pretrained(tmp_path / "wild")
    weights = load_file(tmp_path / "wild" / WEIGHTS)
    for name, tensor in weights.items():
        if name.endswith((".slim_A", ".slim_B")):
            weights[name] = tensor.sign() * 6e4
    save_file(weights, tmp_path / "wild" / WEIGHTS, {"format": "pt"})
    result = run("export", tmp_path / "wild", tmp_path / "out", "--base", world / "base")
    assert result.exit_code == 1 and not (tmp_path / "out").exists(), result.output
    assert "the model's answers overflow" in result.output


def test_no_kernels_that_a_base_names_are_asked_for(world, tmp_path):
    base = shutil.copytree(world / "base", tmp_path / "base")
    fields = json.loads((base / "config.json").read_text()) | {"_attn_implementation": "evil/repo"}
    (base / "config.json").write_text(json.dumps(fields))
    for arguments in (("check", world / "slim"), ("export", world / "slim", tmp_path / "out")):
        result = run(*arguments, "--base", base)
        assert result.exit_code == 0, result.output


def test_an_export_that_cannot_be_written_leaves_nothing(world, tmp_path, monkeypatch):
    def full(tensors, path, **kwargs):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("slim_core.peft_tools.export.save_file", full)
    out = tmp_path / "new" / "out"
    result = run("export", world / "slim", out, "--base", world / "base")
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    assert f"The LoRA cannot be written to {out}: no space left on device." in result.output
    assert not out.parent.exists()
    out.mkdir(parents=True)
    assert run("export", world / "slim", out, "--base", world / "base").exit_code == 1
    assert list(out.iterdir()) == []


def test_info_says_what_an_adapter_is(world):
    result = run("info", world / "slim")
    assert result.exit_code == 0, result.output
    table = dict(line.strip().split(maxsplit=1) for line in result.output.splitlines() if "fingerprint" not in line)
    assert table["kind"] == "SLIM" and table["rank"] == "2" and table["alpha"] == "1.0"
    assert table["experts"] == "3 LoRA + 1 identity, top-2"
    assert table["targets"] == ", ".join(
        [f"model.layers.*.mlp.{name}_proj" for name in ("down", "gate", "up")]
        + [f"model.layers.*.self_attn.{name}_proj" for name in "koqv"]
    )
    assert table["bytes"] == f"{(world / 'slim' / WEIGHTS).stat().st_size:,}"
    factors = 2 * 6 * sum(a + b for a, b in [(32, 32), (32, 16), (32, 16), (32, 32), (32, 48), (32, 48), (48, 32)])
    routers = 2 * (6 * 4 * 33 + 4 * 49)
    assert table["parameters"] == f"{factors + routers:,}"
    assert "model.layers.*.mlp.down_proj: 2 x (48 -> 32)" in result.output


def test_info_of_a_lora(world):
    result = run("info", world / "lora")
    assert "LoRA" in result.output and "q_proj, v_proj" in result.output and str(world / "base") in result.output


@pytest.mark.parametrize("with_text", [False, True])
def test_export_writes_a_plain_lora_and_its_divergence(with_text, world, tmp_path):
    (tmp_path / "text").write_text("What comes after red, 0?\n\nAfter blue comes number 1.\n")
    text = ["--text", tmp_path / "text"] if with_text else []
    result = run("export", world / "slim", tmp_path / "out", "--base", world / "base", *text)
    assert result.exit_code == 0, result.output
    assert f"A plain LoRA of rank 6 is in {tmp_path / 'out'}." in result.output
    tokenizer = small_tokenizer()
    passages = ["What comes after red, 0?", "After blue comes number 1."] if with_text else list(SENTENCES)
    tokens = sum(min(128, len(ids)) for ids in tokenizer(passages).input_ids)
    said = re.search(
        r"by (\d+\.\d+) nats on average and (\d+\.\d+) at most, over (\d+) tokens; ([\d.]+)%", result.output
    )
    assert int(said[3]) == tokens and 0 <= float(said[1]) <= float(said[2])
    base = AutoModelForCausalLM.from_pretrained(world / "base")
    exported = PeftModel.from_pretrained(base, tmp_path / "out")
    assert exported.peft_config["default"].base_model_name_or_path == str(world / "base")
    assert run("check", tmp_path / "out", "--base", world / "base").exit_code == 0
    plain = logits(AutoModelForCausalLM.from_pretrained(world / "base"), torch.arange(8)[None])
    assert not torch.allclose(logits(exported, torch.arange(8)[None]), plain)


def test_export_in_gguf_holds_what_peft_would_load(world, tmp_path):
    pytest.importorskip("gguf", reason='needs gguf: pip install "slim-core[gguf]"')
    from tests.peft_tools.gguf_files import read_gguf

    run("export", world / "slim", tmp_path / "peft", "--base", world / "base")
    result = run("export", world / "slim", tmp_path / "out", "--base", world / "base", "--format", "gguf")
    assert result.exit_code == 0, result.output
    assert f"A plain LoRA of rank 6 is in {tmp_path / 'out' / 'adapter.gguf'}." in result.output
    assert "nats on average" in result.output
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["adapter.gguf"]
    fields, tensors = read_gguf(tmp_path / "out" / "adapter.gguf")
    peft = load_file(tmp_path / "peft" / WEIGHTS)
    assert fields["adapter.lora.alpha"] == 6.0 and len(tensors) == len(peft) == 28
    for which in "AB":
        key = f"base_model.model.model.layers.1.mlp.down_proj.lora_{which}.weight"
        assert torch.equal(tensors[f"blk.1.ffn_down.weight.lora_{which.lower()}"], peft[key])


def test_a_lora_can_be_written_as_gguf(world, tmp_path):
    pytest.importorskip("gguf", reason='needs gguf: pip install "slim-core[gguf]"')
    result = run("export", world / "lora", tmp_path / "out", "--base", world / "base", "--format", "gguf")
    assert (result.exit_code, result.output) == (0, f"The LoRA is in {tmp_path / 'out' / 'adapter.gguf'}.\n")


def test_gguf_needs_a_package(world, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    result = run("export", world / "lora", tmp_path / "out", "--base", world / "base", "--format", "gguf")
    sentence = 'Error: The GGUF format needs gguf; install it with: pip install "slim-core[gguf]"\n'
    assert (result.exit_code, result.output) == (1, sentence)
    assert not (tmp_path / "out").exists()


def test_an_adapter_that_gguf_cannot_hold_leaves_nothing(world, tmp_path):
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(world / "base"), lora(use_dora=True))
    model.save_pretrained(tmp_path / "dora")
    result = run("export", tmp_path / "dora", tmp_path / "out", "--base", world / "base", "--format", "gguf")
    assert result.exit_code == 1
    assert result.output == "Error: This LoRA sets `use_dora` to True, which an adapter of llama.cpp cannot express.\n"
    assert not (tmp_path / "out").exists()


def test_a_warning_is_shown_and_passes(world, tmp_path):
    folder = shutil.copytree(world / "lora", tmp_path / "zero")
    tensors(lambda saved: {key: tensor * 0 for key, tensor in saved.items()})(folder)
    result = run("check", folder, "--base", world / "base")
    assert result.exit_code == 0
    assert [name for state, name, _ in lines(result.output) if state == "warning"] == ["changes something"]
