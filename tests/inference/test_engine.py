# SPDX-License-Identifier: Apache-2.0
"""Drift, attaching and detaching, loading."""

import json
import math
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from slim_core.base.prompts import Prompts
from slim_core.inference import Engine, EngineError, Row, Sampling, drift, load_engine
from slim_core.method import SlimLayer
from tests.conftest import require_stories
from tests.inference.conftest import LONGER, QUESTION, ids, last, rows, save_lora, save_slim, tiny_base
from tests.inference.probe import EngineProbe


def slow_drift(engine, variant, prompt, answer):
    """Token by token in float64, each variant alone."""
    with torch.no_grad():
        base, other = (EngineProbe(engine).logits([*prompt, *answer], name)[0].double() for name in ("base", variant))
    ratios, divergences = [], []
    for t, token in enumerate(answer):
        p, q = base[len(prompt) + t - 1].softmax(0), other[len(prompt) + t - 1].softmax(0)
        ratios.append(math.log(p[token]) - math.log(q[token]))
        divergences.append(sum(float(a * (a.log() - b.log())) for a, b in zip(p, q, strict=True)))
    return torch.tensor(ratios), torch.tensor(divergences)


@pytest.mark.parametrize("at_once", [2**25, 277 * 4 * 3, 1])
def test_drift_is_what_the_formulas_say(engine, at_once, monkeypatch):
    """In one piece, in pieces of three tokens, and token by token."""
    monkeypatch.setattr(drift, "LOGITS_AT_ONCE", at_once)
    answer = last(engine, rows(QUESTION), Sampling(max_new_tokens=10)).rows[0].token_ids
    measured = engine.drift(QUESTION, answer, ["slim", "base", "lora"])
    assert [v.variant for v in measured.variants] == ["slim", "base", "lora"]
    assert "".join(measured.tokens) == EngineProbe(engine).tokenizer.decode(answer)
    for variant in measured.variants:
        assert variant.log_ratio.shape == variant.kl.shape == (len(answer),)
        if variant.variant == "base":
            assert variant.kl.max() < 1e-6 and variant.log_ratio.abs().max() < 1e-5
            assert variant.times_less_likely == pytest.approx(1, abs=1e-4)
            continue
        ratios, kl = slow_drift(engine, variant.variant, EngineProbe(engine).encode(QUESTION), answer)
        torch.testing.assert_close(variant.log_ratio, ratios.float(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(variant.kl, kl.float(), rtol=1e-4, atol=1e-4)
        assert kl.mean() > 0.1
        assert variant.times_less_likely == pytest.approx(math.exp(ratios.sum()), rel=1e-2)


def test_drift_that_cannot_be_is_a_sentence(engine, monkeypatch):
    with pytest.raises(EngineError, match="answer is empty"):
        engine.drift(QUESTION, [], ["slim"])
    with pytest.raises(EngineError, match="no variant named 'gone'"):
        engine.drift(QUESTION, [5], ["gone"])
    with pytest.raises(EngineError, match="at most 256"):
        engine.drift(QUESTION, [5] * 256, ["slim"])
    with pytest.raises(EngineError, match="no token 9999"):
        engine.drift(QUESTION, [5, 9999], ["slim"])
    monkeypatch.setattr(
        type(EngineProbe(engine).base), "forward", lambda *a, **k: (_ for _ in ()).throw(MemoryError())
    )
    with pytest.raises(EngineError, match="is used up"):
        engine.drift(QUESTION, [5], ["slim"])


def test_variants_come_and_go(engine, folders):
    before = ids(last(engine, rows(LONGER)))
    added = engine.attach(folders.slim, label="My own")
    assert added.name == "slim-2" and added.kind == "slim" and added.label == "My own"
    assert added.detail == "rank 2, 3 + 2 experts, top-2"
    # A name may hold a dot, which PEFT's may not.
    assert engine.attach(folders.lora, name="org/x.y").detail == "rank 4"
    step = last(engine, [*rows(LONGER), Row("slim-2", LONGER), Row("org/x.y", LONGER)])
    assert ids(step) == [*before, before[2], before[1]]
    for name in ("slim", "lora", "org/x.y", "slim-2"):
        engine.detach(name)
    assert [variant.name for variant in engine.variants] == ["base"]
    assert not any(isinstance(module, SlimLayer) for module in EngineProbe(engine).base.modules())
    assert ids(last(engine, [Row("base", LONGER)])) == before[:1]
    engine.attach(folders.slim)
    engine.attach(folders.lora)
    assert ids(last(engine, rows(LONGER))) == before


def test_sizes(engine, folders):
    lora = engine.variants[1]
    model = get_peft_model(tiny_base(), LoraConfig(r=4, target_modules="all-linear"))
    assert lora.parameters == model.get_nb_trainable_parameters()[0] and lora.bytes == 4 * lora.parameters
    assert engine.variants[0].parameters == engine.info.parameters == tiny_base().num_parameters()
    memory = engine.memory()
    assert memory.model == engine.info.bytes and memory.adapters["lora"] == lora.bytes
    assert engine.info.blocks == 2 and engine.info.context_length == 256 and engine.info.dtype == "float32"
    assert engine.info.chat_template


@pytest.mark.parametrize("kind", ["lora", "slim"])
def test_an_adapter_that_does_not_fit_leaves_the_engine_as_it_was(kind, engine, tmp_path):
    expected = ids(last(engine, rows(QUESTION)))
    {"lora": save_lora, "slim": save_slim}[kind](tmp_path, tiny_base(hidden_size=16))
    with pytest.raises(EngineError, match=r"cannot be attached: .* made for another base"):
        engine.attach(tmp_path)
    assert len(engine.variants) == 3 and ids(last(engine, rows(QUESTION))) == expected
    bare = Engine(tiny_base(), Prompts(EngineProbe(engine).tokenizer), "bare")
    with pytest.raises(EngineError, match="made for another base"):
        bare.attach(tmp_path)
    assert ids(last(bare, rows(QUESTION)[:1])) == expected[:1]


def test_files_that_are_no_adapter_are_a_sentence(engine, folders, tmp_path):
    with pytest.raises(EngineError, match="There is no folder"):
        engine.attach(tmp_path / "nothing")
    with pytest.raises(EngineError, match="is not a Hub id"):
        engine.attach("nothing")
    with pytest.raises(EngineError, match="HF_HUB_OFFLINE is set"):
        engine.attach("nobody/nothing")
    shutil.copytree(folders.lora, tmp_path / "bin")
    (tmp_path / "bin" / "adapter_model.safetensors").rename(tmp_path / "bin" / "adapter_model.bin")
    with pytest.raises(EngineError, match=r"no `adapter_model\.safetensors` but .* can run code"):
        engine.attach(tmp_path / "bin")
    shutil.copytree(folders.lora, tmp_path / "other")
    config = tmp_path / "other" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"peft_type": "IA3"}))
    with pytest.raises(EngineError, match="`peft_type` is IA3"):
        engine.attach(tmp_path / "other")
    config.write_text("[]")
    with pytest.raises(EngineError, match="must be a JSON object"):
        engine.attach(tmp_path / "other")
    with pytest.raises(EngineError, match="is a lora adapter, not slim"):
        engine.attach(folders.lora, kind="slim")
    with pytest.raises(EngineError, match="named 'slim' already"):
        engine.attach(folders.slim, name="slim")
    with pytest.raises(EngineError, match="no adapter named 'base'"):
        engine.detach("base")


def test_a_base_that_cannot_be_loaded_is_a_sentence(folders, tmp_path):
    with pytest.raises(EngineError, match="cannot be loaded"):
        load_engine(tmp_path)
    with pytest.raises(EngineError, match="is an adapter; --base must name the model"):
        load_engine(folders.lora)
    with pytest.raises(EngineError, match="in 4 bits or in 8 bits"):
        load_engine(folders.base, four_bit=True, eight_bit=True)


def test_four_bit(folders):
    engine = load_engine(folders.base, lora=folders.lora, slim=folders.slim, device="cpu", four_bit=True)
    assert engine.info.dtype == "4-bit nf4"
    together = ids(last(engine, rows(LONGER)))
    assert [ids(last(engine, [row]))[0] for row in rows(LONGER)] == together
    assert ids(last(load_engine(folders.base, device="cpu", four_bit=True), rows(LONGER)[:1])) == together[:1]


def test_counting_tokens(engine):
    assert engine.count_tokens(QUESTION) == len(EngineProbe(engine).encode(QUESTION)) > 5


@pytest.mark.real_data
def test_the_real_small_model_tells_its_story():
    path = require_stories()
    engine = load_engine(path, device="cpu")
    row = last(engine, [Row("base", QUESTION)], Sampling(max_new_tokens=40)).rows[0]
    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModelForCausalLM.from_pretrained(path).eval()
    prompt = torch.tensor([EngineProbe(engine).encode(QUESTION)])
    expected = model.generate(prompt, max_new_tokens=40, do_sample=False)[0, prompt.shape[1] :]
    assert list(row.token_ids) == [token for token in expected.tolist() if token != model.config.eos_token_id]
    assert row.text == tokenizer.decode(expected, skip_special_tokens=True)
