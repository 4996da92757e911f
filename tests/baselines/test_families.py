# SPDX-License-Identifier: Apache-2.0
"""Other architectures than Llama: a trained adapter answers as a row as it does in PEFT."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model

from slim_core.adapters import Folder, attach, describe_base, open_adapter
from slim_core.baselines import METHODS
from slim_core.peft_tools import adapter_rows
from tests.baselines.small import IDS, TUNED_HERE, configured, stir
from tests.conftest import build


GATED = ("qwen3", "gemma3")
CASES = [(family, name) for name in TUNED_HERE for family in GATED]
CASES += [("gpt2", name) for name in TUNED_HERE if "mlp" not in METHODS[name].experts.kinds]


@pytest.mark.parametrize(("family", "name"), CASES)
@torch.no_grad()
def test_a_row_is_what_peft_makes_of_it(family, name, tmp_path):
    model = get_peft_model(build(family), configured(name, build(family))).eval()
    plain = model(input_ids=IDS).logits
    stir(model)
    expected = model(input_ids=IDS).logits
    model.save_pretrained(tmp_path)
    base = build(family).eval()
    adapter = open_adapter(Folder(tmp_path), describe_base(base))
    carrying = attach(base, adapter, "row").eval()
    adapter.delete()
    with adapter_rows(carrying, ["row", "__base__", "row"]):
        actual = carrying(input_ids=IDS).logits
    assert torch.allclose(actual[[0, 2]], expected[[0, 2]], rtol=1e-4, atol=1e-4)
    assert torch.equal(actual[1], plain[1]) and (expected - plain).abs().max() > 0.01
