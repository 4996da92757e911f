# SPDX-License-Identifier: Apache-2.0
"""Adapters that the last code of an earlier format wrote give the logits that it computed, however they are loaded."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from slim_core import trace_routing
from slim_core.adapters import Folder, attach, describe_base, load_whole, open_adapter
from slim_core.inference import Message, Row, load_engine
from slim_core.peft_tools import adapter_rows, fold_masks
from tests.inference.conftest import last, logits_of


DATA = Path(__file__).parent / "data"
BASE = DATA / "format-1" / "base"
QUESTION = (Message("user", "The sea, is it blue?"),)
# In a second turn, contexts begin anew.
TURNS = (*QUESTION, Message("assistant", "It is, they say."), Message("user", "What is the capital of Peru?"))
# Of logits up to 5. One forward gives the same bits where the fixture was made; other processors round differently.
CLOSE = {"rtol": 0, "atol": 2e-5}


class Written(NamedTuple):
    """An adapter and what was computed with it.

    Attributes:
        format: its format.
        folder: where it is.
        messages: what was asked.
        prompt: (P,) the ids of that.
        ids: (1, T) prompt and answer.
        logits: (1, T, V).
    """

    format: int
    folder: Path
    messages: tuple[Message, ...]
    prompt: Tensor
    ids: Tensor
    logits: Tensor


@pytest.fixture(params=["1/calibrated", "1/paper", "2/gate", "2/calibrated", "3/gate", "3/calibrated"])
def written(request) -> Written:
    number, name = request.param.split("/")
    folder = DATA / f"format-{number}"
    kept = load_file(folder / "expected.safetensors")
    messages = QUESTION if number == "1" else TURNS
    ids, logits = kept[f"{name}.ids"][None], kept[f"{name}.logits"][None]
    return Written(int(number), folder / name, messages, kept["prompt"], ids, logits)


def base():
    return AutoModelForCausalLM.from_pretrained(BASE).eval()


def loaded(folder: Path, how: str) -> PeftModel:
    if how == "peft":
        return PeftModel.from_pretrained(base(), folder).eval()
    model = base()
    adapter = open_adapter(Folder(folder), describe_base(model))
    if how == "checked":
        return load_whole(model, adapter, "default")
    return attach(model, adapter, "default").eval()


@pytest.mark.parametrize("how", ["peft", "checked", "attached"])
def test_one_forward_gives_the_logits_of_that_time(written, how):
    model = loaded(written.folder, how)
    assert model.peft_config["default"].format_version == written.format
    with torch.no_grad(), trace_routing(model) as trace:
        torch.testing.assert_close(model(input_ids=written.ids).logits, written.logits, **CLOSE)
    # Otherwise there would be nothing to get wrong.
    identity = trace.row(0).identity
    assert identity.min() < 0.5 and identity.max() > 0.9
    with torch.no_grad():
        assert (base()(input_ids=written.ids).logits - written.logits).abs().max() > 1


@pytest.mark.parametrize("folded", [False, True])
def test_token_by_token_with_a_cache_it_gives_them_too(written, folded):
    model = loaded(written.folder, "peft")
    if folded:
        fold_masks(model, "default")
    prompt, cache, actual = len(written.prompt), None, []
    with torch.no_grad():
        for start, end in [(0, prompt), *((t, t + 1) for t in range(prompt, written.ids.shape[1]))]:
            out = model(input_ids=written.ids[:, start:end], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            actual.append(out.logits)
    torch.testing.assert_close(torch.cat(actual, 1), written.logits, **CLOSE)


def test_as_a_row_beside_the_base_it_gives_them_too(written):
    model = loaded(written.folder, "attached")
    with torch.no_grad(), adapter_rows(model, ["__base__", "default"]):
        out = model.get_base_model()(input_ids=written.ids.expand(2, -1)).logits
    torch.testing.assert_close(out[1:], written.logits, **CLOSE)


def test_greedy_generation_answers_as_it_did(written):
    prompt = written.prompt[None]
    model = loaded(written.folder, "peft")
    out = model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=4, do_sample=False)
    assert torch.equal(out, written.ids)


def test_a_row_of_the_engine_answers_as_it_did(written, monkeypatch):
    engine = load_engine(BASE, slim=written.folder, device="cpu")
    rows = [Row("base", written.messages), Row("slim", written.messages, routing=True)]
    prompt = len(written.prompt)
    steps = logits_of(engine, rows, monkeypatch, tokens=4)
    # The base may have ended earlier.
    actual = torch.stack([step[1] for step in steps])
    torch.testing.assert_close(actual, written.logits[0, prompt - 1 : prompt - 1 + len(actual)], **CLOSE)
    answer = last(engine, rows).rows[1]
    assert answer.token_ids[:4] == tuple(written.ids[0, prompt:].tolist())
