# SPDX-License-Identifier: Apache-2.0
"""Adapters that the last code of format 1 wrote give the logits that it computed, however they are loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from slim_core import trace_routing
from slim_core.adapters import Folder, attach, describe_base, load_whole, open_adapter
from slim_core.inference import Message, Row, load_engine
from slim_core.peft_tools import adapter_rows, fold_masks
from tests.inference.conftest import last, logits_of


FOLDER = Path(__file__).parent / "data" / "format-1"
EXPECTED = load_file(FOLDER / "expected.safetensors")
QUESTION = (Message("user", "The sea, is it blue?"),)
# Of logits up to 5. One forward gives the same bits where the fixture was made; other processors round differently.
CLOSE = {"rtol": 0, "atol": 2e-5}


@pytest.fixture(params=["calibrated", "paper"])
def name(request) -> str:
    return request.param


@pytest.fixture
def ids(name) -> torch.Tensor:
    return EXPECTED[f"{name}.ids"][None]


@pytest.fixture
def expected(name) -> torch.Tensor:
    """(1, T, V)."""
    return EXPECTED[f"{name}.logits"][None]


def base():
    return AutoModelForCausalLM.from_pretrained(FOLDER / "base").eval()


def loaded(name: str, how: str) -> PeftModel:
    if how == "peft":
        return PeftModel.from_pretrained(base(), FOLDER / name).eval()
    model = base()
    adapter = open_adapter(Folder(FOLDER / name), describe_base(model))
    if how == "checked":
        return load_whole(model, adapter, "default")
    return attach(model, adapter, "default").eval()


@pytest.mark.parametrize("how", ["peft", "checked", "attached"])
def test_one_forward_gives_the_logits_of_that_time(name, how, ids, expected):
    model = loaded(name, how)
    assert model.peft_config["default"].format_version == 1
    with torch.no_grad(), trace_routing(model) as trace:
        torch.testing.assert_close(model(input_ids=ids).logits, expected, **CLOSE)
    # Otherwise there would be nothing to get wrong.
    identity = trace.row(0).identity
    assert identity.min() < 0.5 and identity.max() > 0.9
    with torch.no_grad():
        assert (base()(input_ids=ids).logits - expected).abs().max() > 1


@pytest.mark.parametrize("folded", [False, True])
def test_token_by_token_with_a_cache_it_gives_them_too(name, folded, ids, expected):
    model = loaded(name, "peft")
    if folded:
        fold_masks(model, "default")
    prompt, cache, actual = len(EXPECTED["prompt"]), None, []
    with torch.no_grad():
        for start, end in [(0, prompt), *((t, t + 1) for t in range(prompt, ids.shape[1]))]:
            out = model(input_ids=ids[:, start:end], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            actual.append(out.logits)
    torch.testing.assert_close(torch.cat(actual, 1), expected, **CLOSE)


def test_as_a_row_beside_the_base_it_gives_them_too(name, ids, expected):
    model = loaded(name, "attached")
    with torch.no_grad(), adapter_rows(model, ["__base__", "default"]):
        out = model.get_base_model()(input_ids=ids.expand(2, -1)).logits
    torch.testing.assert_close(out[1:], expected, **CLOSE)


def test_greedy_generation_answers_as_it_did(name, ids):
    prompt = EXPECTED["prompt"][None]
    model = loaded(name, "peft")
    out = model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=4, do_sample=False)
    assert torch.equal(out, ids)


def test_a_row_of_the_engine_answers_as_it_did(name, ids, expected, monkeypatch):
    engine = load_engine(FOLDER / "base", slim=FOLDER / name, device="cpu")
    rows = [Row("base", QUESTION), Row("slim", QUESTION, routing=True)]
    prompt = len(EXPECTED["prompt"])
    steps = logits_of(engine, rows, monkeypatch, tokens=4)
    # The base may have ended earlier.
    actual = torch.stack([step[1] for step in steps])
    torch.testing.assert_close(actual, expected[0, prompt - 1 : prompt - 1 + len(actual)], **CLOSE)
    answer = last(engine, rows).rows[1]
    assert answer.token_ids[:4] == tuple(ids[0, prompt:].tolist())
