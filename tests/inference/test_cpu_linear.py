# SPDX-License-Identifier: Apache-2.0
"""Large Linears of the base go another way through PyTorch and give the same."""

import logging

import numpy as np
import pytest
import torch
from torch import nn

from slim_core.base.prompts import Prompts
from slim_core.demo.chat import train_tokenizer
from slim_core.inference import Engine, Sampling, cpu_linear
from slim_core.inference import engine as engine_module
from slim_core.inference.cpu_linear import CpuLinear, use_faster_linears
from tests.inference.conftest import LONGER, QUESTION, SHORT, TEXTS, ids, last, rows, save_lora, save_slim, tiny_base


HAS_MATVEC = hasattr(np, "matvec")
needs_onednn = pytest.mark.skipif(not cpu_linear.has_operator(), reason="this PyTorch has no oneDNN for x86")


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tokens", [(1, 1), (3, 1), (2, 17)])
@pytest.mark.parametrize("intel", [True, False])
def test_the_result_is_the_same(bias, tokens, intel, monkeypatch):
    monkeypatch.setattr(cpu_linear, "is_intel", lambda: intel)
    model = nn.ModuleList(
        [nn.Linear(512, 2560, bias=bias), nn.Linear(512, 640, bias=bias), nn.Linear(8, 8, bias=bias)]
    )
    model.append(nn.Linear(512, 640).bfloat16())
    large, middle, small, half = model
    inputs = {layer: torch.randn(*tokens, layer.in_features) for layer in (large, middle, small)}
    expected = {layer: layer(x) for layer, x in inputs.items()}
    use_faster_linears(model)
    assert type(large) is type(middle) is CpuLinear and type(half) is nn.Linear
    assert type(small) is (nn.Linear if intel or not HAS_MATVEC else CpuLinear)
    for layer, x in inputs.items():
        with torch.inference_mode():
            torch.testing.assert_close(layer(x), expected[layer], rtol=1e-5, atol=1e-5)
            assert layer(x.double().float()).shape == expected[layer].shape
        x.requires_grad_(True)
        layer(x).sum().backward()
        assert x.grad is not None and layer.weight.grad is not None
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16


@needs_onednn
@pytest.mark.skipif(not HAS_MATVEC, reason="this NumPy has no matvec")
@pytest.mark.parametrize(
    ("threads", "of_numpy", "rows", "width", "goes"),
    [
        (1, 2, 3, 640, True),
        (1, 2, 4, 640, False),
        (2, 2, 3, 640, False),
        (2, 2, 3, 320, False),
        (2, 1, 3, 640, False),
        (2, 1, 3, 320, True),
        (2, 1, 4, 320, False),
        (1, 1, 3, 2560, False),
    ],
)
def test_a_few_rows_of_a_small_weight_go_through_numpy(threads, of_numpy, rows, width, goes, monkeypatch):
    monkeypatch.setattr(cpu_linear, "is_intel", lambda: False)
    monkeypatch.setattr(cpu_linear, "numpy_has_one_thread", lambda: of_numpy == 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    calls = []
    row_by_row = cpu_linear._row_by_row
    monkeypatch.setattr(cpu_linear, "_row_by_row", lambda *args: calls.append(1) or row_by_row(*args))
    model = nn.ModuleList([nn.Linear(512, width)])
    use_faster_linears(model)
    with torch.inference_mode():
        model[0](torch.randn(rows, 1, 512))
    assert bool(calls) == goes


def test_without_the_operator_nothing_changes(monkeypatch):
    monkeypatch.setattr(cpu_linear, "has_operator", lambda: False)
    model = nn.ModuleList([nn.Linear(512, 640)])
    use_faster_linears(model)
    assert type(model[0]) is nn.Linear


@needs_onednn
def test_an_operator_of_another_form_is_not_used_and_a_warning_says_so_once(monkeypatch, caplog):
    cpu_linear.has_operator.cache_clear()
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(cpu_linear, "onednn", lambda *_: torch.ops.mkldnn._no_such_operator())
        for _ in range(2):
            assert not cpu_linear.has_operator()
    cpu_linear.has_operator.cache_clear()
    (record,) = caplog.records
    sentence = "The base answers more slowly than it could, because oneDNN cannot be called directly: "
    assert record.getMessage().startswith(sentence) and "_no_such_operator" in record.getMessage()


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
            monkeypatch.setattr(engine_module, "use_faster_linears", lambda model: None)
        engine = Engine(base, Prompts(tokenizer), "wide")
        for kind in ("lora", "slim"):
            engine.attach(tmp_path / kind, name=kind)
        assert any(isinstance(module, CpuLinear) for module in base.modules()) == changed
        answers.append(ids(last(engine, rows(QUESTION, LONGER, SHORT), sampling)))
        answers.append([ids(last(engine, [row], sampling))[0] for row in rows(QUESTION, LONGER, SHORT)])
    assert answers == [answers[0]] * 4
