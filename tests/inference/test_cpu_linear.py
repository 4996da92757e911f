# SPDX-License-Identifier: Apache-2.0
"""Large Linears of the base go another way through PyTorch and give the same."""

import pytest
import torch
from torch import nn

from slim_core.base.prompts import Prompts
from slim_core.demo.chat import train_tokenizer
from slim_core.inference import Engine, Sampling, cpu_linear
from slim_core.inference import engine as engine_module
from slim_core.inference.cpu_linear import OneDnnLinear, use_onednn
from tests.inference.conftest import LONGER, QUESTION, SHORT, TEXTS, ids, last, rows, save_lora, save_slim, tiny_base


needs_onednn = pytest.mark.skipif(not cpu_linear.has_operator(), reason="this PyTorch has no oneDNN for x86")


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tokens", [(1, 1), (3, 1), (2, 17)])
@pytest.mark.parametrize("intel", [True, False])
def test_the_result_is_the_same(bias, tokens, intel, monkeypatch):
    monkeypatch.setattr(cpu_linear, "_is_intel", lambda: intel)
    model = nn.ModuleList([nn.Linear(512, 640, bias=bias), nn.Linear(8, 8), nn.Linear(512, 640).bfloat16()])
    layer, small, half = model
    x = torch.randn(*tokens, 512)
    expected = layer(x)
    use_onednn(model)
    assert type(layer) is OneDnnLinear and type(small) is type(half) is nn.Linear
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)
        assert layer(x.double().float()).shape == expected.shape
    x.requires_grad_(True)
    layer(x).sum().backward()
    assert x.grad is not None and layer.weight.grad is not None
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16


def test_without_the_operator_nothing_changes(monkeypatch):
    monkeypatch.setattr(cpu_linear, "has_operator", lambda: False)
    model = nn.ModuleList([nn.Linear(512, 640)])
    use_onednn(model)
    assert type(model[0]) is nn.Linear


def test_an_operator_of_another_form_is_not_used(monkeypatch):
    cpu_linear.has_operator.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(cpu_linear, "_onednn", lambda *_: torch.ops.mkldnn._no_such_operator())
        assert not cpu_linear.has_operator()
    cpu_linear.has_operator.cache_clear()


@needs_onednn
def test_answers_of_a_wide_model_are_the_same(tmp_path, monkeypatch):
    tokenizer = train_tokenizer(TEXTS)
    sampling = Sampling(max_new_tokens=10, temperature=0.8, seed=2)
    answers = []
    for changed in (True, False):
        base = tiny_base(intermediate_size=8192)
        if changed:
            save_lora(tmp_path / "lora", base)
            save_slim(tmp_path / "slim", base)
        else:
            monkeypatch.setattr(engine_module, "use_onednn", lambda model: None)
        engine = Engine(base, Prompts(tokenizer), "wide")
        for kind in ("lora", "slim"):
            engine.attach(tmp_path / kind, name=kind)
        assert any(isinstance(module, OneDnnLinear) for module in base.modules()) == changed
        answers.append(ids(last(engine, rows(QUESTION, LONGER, SHORT), sampling)))
        answers.append([ids(last(engine, [row], sampling))[0] for row in rows(QUESTION, LONGER, SHORT)])
    assert answers == [answers[0]] * 4
