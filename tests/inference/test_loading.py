# SPDX-License-Identifier: Apache-2.0
"""What is decided before a base is loaded, quantised bases, and folders that are no base."""

from __future__ import annotations

import json
import re
import shutil

import bitsandbytes as bnb
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from slim_core.base import devices, loading
from slim_core.base.choice import BaseChoice
from slim_core.base.devices import answer_dtype, cpu_memory
from slim_core.base.estimate import empty_model, estimate
from slim_core.base.folder import read_config
from slim_core.base.loading import plan, quantisation_config, read_model
from slim_core.demo.chat import train_tokenizer
from slim_core.inference import EngineError, Row, load_engine
from slim_core.inference.describe import bytes_by_device
from tests.conftest import every_device
from tests.inference.conftest import (
    LONGER,
    QUESTION,
    SHORT,
    TEXTS,
    Folders,
    last,
    logits_of,
    rows,
    save_lora,
    save_slim,
    tiny_base,
)
from tests.inference.probe import EngineProbe


CPU = torch.device("cpu")
MEGABYTE = 1_000_000
# How far the quantised logits of the model below are from those in full precision: the mean of the absolute
# differences over the spread of the logits.
DISTANCE = {4: 0.3, 8: 0.03}


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> Folders:
    """Sizes are multiples of 64, the block of the quantisation; the weights are those of a new model."""
    root = tmp_path_factory.mktemp("wide")
    made = Folders(root / "base", root / "lora", root / "slim")
    base = tiny_base(hidden_size=64, intermediate_size=128, head_dim=16, initializer_range=0.1)
    base.save_pretrained(made.base)
    train_tokenizer(TEXTS).save_pretrained(made.base)
    save_lora(made.lora, base)
    save_slim(made.slim, base)
    return made


# -- before loading ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "stored", "has", "expected"),
    [
        ("cpu", torch.float32, True, torch.float32),
        ("cpu", torch.bfloat16, True, torch.bfloat16),
        ("cpu", torch.float16, True, torch.bfloat16),
        ("cpu", torch.bfloat16, False, torch.float32),
        ("cpu", None, True, torch.float32),
        ("cuda", torch.float32, True, torch.bfloat16),
        ("cuda", torch.float16, False, torch.float32),
    ],
)
def test_the_dtype_is_what_the_device_is_good_at(device, stored, has, expected, monkeypatch):
    monkeypatch.setattr(devices, "cpu_has_bfloat16", lambda: has)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has)
    assert answer_dtype(torch.device(device), stored) == expected


def test_memory_is_that_of_the_container(tmp_path):
    free, total = cpu_memory(tmp_path / "none")
    assert 0 < free <= total
    for name, text in {"max": "5000000\n", "current": "3000000\n", "stat": "anon 1\ninactive_file 1000000\n"}.items():
        (tmp_path / f"memory.{name}").write_text(text)
    assert cpu_memory(tmp_path) == (3_000_000, 5_000_000)
    (tmp_path / "memory.max").write_text("max\n")
    assert cpu_memory(tmp_path)[1] == total


@pytest.mark.parametrize("bits", [None, 4, 8])
def test_the_estimate_of_the_weights_is_what_they_take(wide, bits):
    config = AutoConfig.from_pretrained(wide.base)
    need = estimate(empty_model(config, torch.float32), torch.float32, bits)
    engine = load_engine(wide.base, device="cpu", four_bit=bits == 4, eight_bit=bits == 8)
    assert need.parameters == engine.info.parameters
    # The library's own count leaves out what the blocks are scaled by.
    assert engine.info.bytes <= need.weights <= engine.info.bytes * 1.05
    assert need.dtype == engine.info.dtype


def test_a_base_that_does_not_fit_is_refused_with_numbers_and_nothing_is_read(wide, monkeypatch):
    read = []
    monkeypatch.setattr("slim_core.inference.loading.read_base", lambda *args: read.append(args))
    monkeypatch.setattr(loading, "device_memory", lambda device: (MEGABYTE // 2, 2 * MEGABYTE))
    with pytest.raises(EngineError) as error:
        load_engine(wide.base, device="cpu")
    sentence = str(error.value)
    assert re.search(r"base needs about \d\.\d MB of memory: .* parameters in float32", sentence)
    assert "cpu has 500.0 kB free of 2.0 MB" in sentence and not read


def test_4_bits_are_named_where_they_would_fit(wide, monkeypatch):
    config = AutoConfig.from_pretrained(wide.base)
    whole = estimate(empty_model(config, torch.float32), torch.float32).total
    monkeypatch.setattr(loading, "device_memory", lambda device: (whole - 1, whole))
    with pytest.raises(EngineError, match="in 4 bits it needs"):
        plan(BaseChoice(str(wide.base)), config, "cpu")
    assert plan(BaseChoice(str(wide.base), bits=4), config, "cpu").need.total < whole
    # What the old base gives back counts.
    assert plan(BaseChoice(str(wide.base)), config, "cpu", released={CPU: 1}).device == CPU


def test_a_base_too_large_for_one_gpu_is_spread_over_all(wide, monkeypatch):
    config = AutoConfig.from_pretrained(wide.base)
    whole = estimate(empty_model(config, torch.bfloat16), torch.bfloat16).total
    monkeypatch.setattr(loading, "device_memory", lambda device: (whole - 1, whole))
    monkeypatch.setattr(loading, "answer_dtype", lambda device, stored: torch.bfloat16)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(loading, "all_gpus", lambda released: {0: whole - 1, 1: whole - 1})
    choice = BaseChoice(str(wide.base))
    assert plan(choice, config, "cuda").spread
    for device, gpus in (("cuda:1", {0: whole, 1: whole}), ("cuda", {0: whole - 1}), ("cuda", {0: 1, 1: 1})):
        monkeypatch.setattr(loading, "all_gpus", lambda released, gpus=gpus: gpus)
        with pytest.raises(EngineError, match="free of"):
            plan(choice, config, device)


def test_what_is_released_counts_on_its_own_gpu_alone(wide, monkeypatch):
    config = AutoConfig.from_pretrained(wide.base)
    whole = estimate(empty_model(config, torch.bfloat16), torch.bfloat16).total
    first, second = torch.device("cuda", 0), torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (whole // 2, 2 * whole))
    monkeypatch.setattr(loading, "answer_dtype", lambda device, stored: torch.bfloat16)
    choice = BaseChoice(str(wide.base))
    for device in (first, "cuda"):
        assert not plan(choice, config, device, released={first: whole}).spread
    with pytest.raises(EngineError, match="free of"):
        plan(choice, config, first, released={second: whole})
    assert plan(choice, config, "cuda", released={second: whole}).spread
    # What both give back lets it go over both, and still on neither alone.
    assert plan(choice, config, "cuda", released={first: whole // 3, second: whole // 3}).spread
    with pytest.raises(EngineError, match="free of"):
        plan(choice, config, "cuda")


def test_what_a_model_takes_is_told_by_device(folders):
    model = tiny_base()
    model.lm_head.to("meta")
    head = model.lm_head.weight.numel() * 4
    whole = load_engine(folders.base, device="cpu")
    assert bytes_by_device(model)[torch.device("meta")] == head
    assert sum(whole.held.values()) == whole.info.bytes and set(whole.held) == {CPU}
    before = whole.held[CPU]
    variant = whole.attach(folders.lora)
    assert whole.held[CPU] == before + variant.bytes
    whole.detach("lora")
    assert whole.held[CPU] == before


NO_DEVICE = {
    "evil": "There is no device 'evil'; it must be cpu, cuda, a numbered GPU such as cuda:1, or mps",
    "meta": "There is no device 'meta'",
    "": "There is no device ''",
    "cuda:x": "There is no device 'cuda:x'",
    "cuda": "There is no device cuda: torch finds no CUDA GPU on this machine; choose cpu",
    "mps": "There is no device mps: torch finds no Apple GPU",
}


@pytest.mark.parametrize(("device", "words"), NO_DEVICE.items(), ids=NO_DEVICE)
def test_a_device_that_is_not_here_is_a_sentence(device, words, folders, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(EngineError, match=words):
        load_engine(folders.base, device=device)


def test_a_gpu_that_this_machine_has_not_is_a_sentence(folders, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(EngineError, match="There is no device cuda:7: this machine has 2 CUDA GPUs, counted from 0"):
        load_engine(folders.base, device="cuda:7")


# -- quantised bases ---------------------------------------------------------------------------------------------


def load(wide: Folders, device: str, bits: int | None, **adapters):
    return load_engine(wide.base, device=device, four_bit=bits == 4, eight_bit=bits == 8, **adapters)


def first_logits(engine, monkeypatch) -> torch.Tensor:
    return logits_of(engine, [Row("base", LONGER)], monkeypatch)[0][0].float().cpu()


@every_device
@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_logits_are_near_those_in_full_precision(wide, device, bits, monkeypatch):
    exact = first_logits(load(wide, device, None), monkeypatch)
    quantised = first_logits(load(wide, device, bits), monkeypatch)
    distance = float((quantised - exact).abs().mean() / exact.std())
    assert 0 < distance < DISTANCE[bits]


@every_device
@pytest.mark.parametrize("bits", [4, 8])
def test_rows_on_a_quantised_base_are_the_adapters_alone_on_the_same(wide, device, bits, monkeypatch):
    """Against PEFT's own adapters, one at a time, around the same quantised base."""
    engine = load(wide, device, bits, lora=wide.lora, slim=wide.slim)
    assert engine.info.dtype == {4: "4-bit nf4", 8: "8-bit"}[bits]
    together = logits_of(engine, rows(QUESTION, LONGER, SHORT), monkeypatch)[0]
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    for index, (folder, messages) in enumerate(((None, QUESTION), (wide.lora, LONGER), (wide.slim, SHORT))):
        quantisation = quantisation_config(bits, dtype)
        model = read_model(str(wide.base), None, dtype, quantisation, torch.device(device))
        if folder is not None:
            model = PeftModel.from_pretrained(model, folder).eval()
        prompt = torch.tensor([EngineProbe(engine).encode(messages)], device=device)
        with torch.no_grad():
            alone = model(input_ids=prompt).logits[0, -1]
        near = 1e-5 if device == "cpu" else 0.1
        torch.testing.assert_close(together[index], alone, atol=near, rtol=near)


@every_device
@pytest.mark.parametrize("bits", [4, 8])
def test_a_base_that_was_saved_in_few_bits_is_read_in_as_many(wide, device, bits, tmp_path, monkeypatch):
    quantised = load(wide, device, bits)
    EngineProbe(quantised).base.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(wide.base / name, tmp_path)
    if bits == 8:
        # As transformers saves it: with columns that are chosen over the whole batch.
        config = json.loads((tmp_path / "config.json").read_text())
        config["quantization_config"]["llm_int8_threshold"] = 6.0
        (tmp_path / "config.json").write_text(json.dumps(config))
    again = load_engine(tmp_path, device=device)
    assert again.info.dtype == quantised.info.dtype == {4: "4-bit nf4", 8: "8-bit"}[bits]
    layers = [module for module in EngineProbe(again).base.modules() if isinstance(module, bnb.nn.Linear8bitLt)]
    assert bool(layers) == (bits == 8) and {layer.state.threshold for layer in layers} <= {0.0}
    torch.testing.assert_close(first_logits(again, monkeypatch), first_logits(quantised, monkeypatch))


# -- folders that are no base ------------------------------------------------------------------------------------


def test_weights_that_are_missing_are_not_made_up(folders, tmp_path):
    shutil.copytree(folders.base, tmp_path / "base")
    weights = tmp_path / "base" / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(weights).items() if "layers.1.mlp" not in name}
    save_file(kept, weights, {"format": "pt"})
    with pytest.raises(EngineError, match=r"base cannot be loaded: its files lack 3 of its weights, .*layers\.1\.mlp"):
        load_engine(tmp_path / "base", device="cpu")


def test_other_files_of_weights_are_not_opened(folders, tmp_path):
    shutil.copytree(folders.base, tmp_path / "base")
    (tmp_path / "base" / "model.safetensors").rename(tmp_path / "base" / "pytorch_model.bin")
    with pytest.raises(EngineError, match=r"base has no model\.safetensors"):
        load_engine(tmp_path / "base", device="cpu")


def change(folder, **fields) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_config_brings_no_code_of_others(folders, tmp_path):
    shutil.copytree(folders.base, tmp_path / "base")
    change(
        tmp_path / "base",
        attn_implementation="evil/kernel",
        experts_implementation="evil/kernel",
        auto_map={"AutoModelForCausalLM": "evil/repo--modeling.Evil"},
    )
    config = read_config(tmp_path / "base", "theirs")
    assert config._attn_implementation is None and config._experts_implementation is None
    engine = load_engine(tmp_path / "base", device="cpu")
    assert EngineProbe(engine).base.config._attn_implementation == "sdpa"
    change(tmp_path / "base", model_type="evil")
    with pytest.raises(EngineError, match="cannot be loaded"):
        load_engine(tmp_path / "base", device="cpu")


def test_weights_in_formats_of_others_are_refused(folders, tmp_path):
    shutil.copytree(folders.base, tmp_path / "base")
    change(tmp_path / "base", quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(EngineError, match="base is stored in gptq, which is not supported"):
        load_engine(tmp_path / "base", device="cpu")


def test_a_token_that_the_model_does_not_know_ends_its_row(folders, tmp_path):
    shutil.copytree(folders.base, tmp_path / "base")
    tokenizer = train_tokenizer(TEXTS)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|more|>"]})
    tokenizer.chat_template = "<|more|>" + tokenizer.chat_template
    tokenizer.save_pretrained(tmp_path / "base")
    engine = load_engine(tmp_path / "base", device="cpu")
    assert "The chat template writes token" in last(engine, rows(QUESTION)[:1]).rows[0].error


def test_a_family_without_plain_linears_is_not_called_quantised():
    config = AutoConfig.for_model("falcon", vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
    with pytest.raises(EngineError, match=r"theirs \(falcon\) has no Linears that bitsandbytes quantises"):
        plan(BaseChoice("theirs", bits=4), config, "cpu")
