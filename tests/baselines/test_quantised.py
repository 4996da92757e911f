# SPDX-License-Identifier: Apache-2.0
"""The methods on 4- and 8-bit bases of the real bitsandbytes: trained, saved, loaded, and a row."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel, get_peft_model

from slim_core.adapters import Folder, attach, describe_base, open_adapter
from slim_core.method import guard_cpu_4bit
from slim_core.peft_tools import adapter_rows
from tests.baselines.small import IDS, TUNED_HERE, configured, stir


pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
from tests.method.test_quantised import folder, load


__all__ = ["folder"]


@pytest.mark.parametrize("kind", ["nf4-double", "int8"])
@pytest.mark.parametrize("name", TUNED_HERE)
def test_it_learns_is_saved_and_is_a_row_of_a_quantised_base(name, kind, folder, tmp_path):
    base = load(folder, kind)
    guard_cpu_4bit(base)
    model = get_peft_model(base, configured(name, base))
    stir(model)
    model.train()(input_ids=IDS, labels=IDS).loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)
    model.eval()
    with torch.no_grad():
        expected = model(input_ids=IDS).logits
        with model.disable_adapter():
            plain = model(input_ids=IDS).logits
    model.save_pretrained(tmp_path)
    again = load(folder, kind)
    guard_cpu_4bit(again)
    with torch.no_grad():
        loaded = PeftModel.from_pretrained(again, tmp_path).eval()(input_ids=IDS).logits
    assert torch.equal(loaded, expected)
    row_base = load(folder, kind)
    guard_cpu_4bit(row_base)
    adapter = open_adapter(Folder(tmp_path), describe_base(row_base))
    carrying = attach(row_base, adapter, "row").eval()
    adapter.delete()
    with torch.no_grad(), adapter_rows(carrying, ["row", "__base__", "row"]):
        actual = carrying(input_ids=IDS).logits
    # 8-bit Linears quantise each row of their input by itself, but in other batches round otherwise.
    assert torch.allclose(actual[[0, 2]], expected[[0, 2]], rtol=1e-2, atol=1e-2)
    assert torch.allclose(actual[1], plain[1], atol=1e-2) and (expected - plain).abs().max() > 0.1
