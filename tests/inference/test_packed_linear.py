# SPDX-License-Identifier: Apache-2.0
"""Packed weights give the same, and the plain ones are gone."""

import logging
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from slim_core.demo.chat import train_tokenizer
from slim_core.inference import Row, Sampling, cpu_linear, load_engine, packed_linear
from slim_core.inference.packed_linear import PackedLinear, pack_linears
from tests.inference.conftest import (
    LONGER,
    QUESTION,
    SHORT,
    TEXTS,
    ids,
    last,
    rows,
    save_dora,
    save_lora,
    save_slim,
    tiny_base,
)


pytestmark = pytest.mark.skipif(not cpu_linear.has_operator(), reason="this PyTorch has no oneDNN for x86")


@pytest.fixture(autouse=True)
def small_weights_on_amd(monkeypatch):
    monkeypatch.setattr(packed_linear, "WORTH_IT", 64)
    monkeypatch.setattr(packed_linear, "is_intel", lambda: False)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tokens", [(1, 1), (3, 1), (2, 17)])
@pytest.mark.parametrize("shape", [(768, 192), (100, 30), (65, 7)])
def test_the_result_is_the_same(bias, tokens, shape):
    model = nn.Sequential(nn.Linear(shape[1], shape[0], bias=bias))
    plain = nn.Linear(shape[1], shape[0], bias=bias)
    plain.load_state_dict(model[0].state_dict())
    pack_linears(model)
    packed = model[0]
    assert type(packed) is PackedLinear and packed.weight.is_mkldnn
    assert packed.weight.shape == shape and packed.weight.dtype == torch.float32
    assert packed.weight.to_dense().equal(plain.weight)
    x = torch.randn(*tokens, shape[1])
    with torch.inference_mode():
        torch.testing.assert_close(packed(x), plain(x), rtol=1e-5, atol=1e-5)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert packed(x).dtype == torch.bfloat16
    x.requires_grad_(True)
    packed(x).sum().backward()
    mine, x.grad = x.grad, None
    plain(x).sum().backward()
    torch.testing.assert_close(mine, x.grad, rtol=1e-5, atol=1e-5)


def test_the_plain_weight_is_released():
    model = nn.Sequential(nn.Linear(64, 64))
    weight = weakref.ref(model[0].weight)
    pack_linears(model)
    assert weight() is None


def test_what_is_read_from_a_file_leaves_its_pages(tmp_path):
    base = tiny_base()
    base.save_pretrained(tmp_path)
    loaded = type(base).from_pretrained(tmp_path)
    embedding = loaded.get_input_embeddings().weight
    before = embedding.data_ptr()
    pack_linears(loaded)
    assert embedding.data_ptr() != before and embedding.equal(base.get_input_embeddings().weight)


def test_what_stays(monkeypatch):
    model = nn.ModuleList([nn.Linear(7, 7), nn.Linear(64, 64).bfloat16(), nn.Embedding(64, 32), nn.Linear(32, 64)])
    model[3].weight = model[2].weight
    pack_linears(model)
    assert not any(type(module) is PackedLinear for module in model)
    monkeypatch.setattr(packed_linear, "is_intel", lambda: True)
    model = nn.Sequential(nn.Linear(64, 64))
    pack_linears(model)
    assert type(model[0]) is nn.Linear


def test_where_packing_fails_a_warning_says_so_once(monkeypatch, caplog):
    def failing(weight):
        raise RuntimeError("no such operator")

    packed_linear._works.cache_clear()
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(packed_linear, "_packed", failing)
        for _ in range(2):
            model = nn.Sequential(nn.Linear(64, 64))
            pack_linears(model)
            assert type(model[0]) is nn.Linear
    packed_linear._works.cache_clear()
    assert [record.getMessage() for record in caplog.records] == [
        "The base answers more slowly than it could, because its weights cannot be packed: no such operator"
    ]


def test_a_weight_that_cannot_be_packed_stays_plain(monkeypatch, caplog):
    pack, left = packed_linear._packed, [True]

    def no_memory_for_the_second(weight):
        if weight.shape == (64, 64) and not left:
            raise RuntimeError("not enough memory")
        if weight.shape == (64, 64):
            left.clear()
        return pack(weight)

    monkeypatch.setattr(packed_linear, "_packed", no_memory_for_the_second)
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    expected = F.linear(F.linear(torch.ones(3, 64), *model[0].parameters()), *model[1].parameters())
    pack_linears(model)
    assert [type(module) for module in model] == [PackedLinear, nn.Linear]
    torch.testing.assert_close(model(torch.ones(3, 64)), expected, rtol=1e-5, atol=1e-5)
    assert "not enough memory" in caplog.text


def test_answers_of_a_loaded_base_are_the_same(tmp_path, monkeypatch):
    base = tiny_base(tie_word_embeddings=False)
    base.save_pretrained(tmp_path / "base")
    train_tokenizer(TEXTS).save_pretrained(tmp_path / "base")
    save_lora(tmp_path / "lora", base)
    save_slim(tmp_path / "slim", base)
    save_dora(tmp_path / "dora", base)
    sampling = Sampling(max_new_tokens=10, temperature=0.8, seed=2)
    answers = []
    for packs in (True, False):
        monkeypatch.setattr(packed_linear, "is_intel", lambda packs=packs: not packs)
        engine = load_engine(tmp_path / "base", lora=tmp_path / "lora", slim=tmp_path / "slim", device="cpu")
        engine.attach(tmp_path / "dora", name="dora")
        layers = [layer for layer in engine._model.modules() if isinstance(layer, nn.Linear)]
        assert len(layers) > 10 and all((type(layer) is PackedLinear) == packs for layer in layers)
        asked = [*rows(QUESTION, LONGER, SHORT), Row("dora", QUESTION)]
        answers.append(ids(last(engine, asked, sampling)))
        answers.append([ids(last(engine, [row], sampling))[0] for row in asked])
        engine.detach("lora")
        answers.append(ids(last(engine, [asked[0]], sampling)))
    assert answers[0] == answers[1] == answers[3] == answers[4] and answers[2] == answers[5] == answers[0][:1]
