# SPDX-License-Identifier: Apache-2.0
"""Rows set once for many forwards."""

import pytest
import torch

from slim_core.peft_tools import adapter_rows
from tests.conftest import build
from tests.method.small import logits, trained


def test_rows_are_those_of_adapter_names(ids):
    model = trained(ids)
    names = ["__base__", "default", "__base__"]
    with torch.no_grad():
        expected = model(ids, adapter_names=names).logits
        with adapter_rows(model, names):
            assert torch.equal(model.get_base_model()(ids).logits, expected)
            assert torch.equal(model.get_base_model()(ids).logits, expected)
    assert torch.equal(logits(model, ids)[1], expected[1])


def test_a_module_saved_whole_has_its_rows_too(ids):
    model = trained(ids, target_modules=["q_proj"], modules_to_save=["lm_head"])
    names = ["default", "__base__", "default"]
    with torch.no_grad():
        expected = model(ids, adapter_names=names).logits
        with adapter_rows(model.get_base_model(), names):
            assert torch.equal(model.get_base_model()(ids).logits, expected)
    # And not any more afterwards.
    with torch.no_grad():
        assert torch.equal(model(ids).logits[0], expected[0])


def test_what_cannot_be_is_a_sentence(ids):
    model = trained(ids)
    with pytest.raises(ValueError, match=r"non-existing adapter.*: other; "), adapter_rows(model, ["other"]):
        pass
    with pytest.raises(ValueError, match="no adapter whose rows"), adapter_rows(build("llama"), ["__base__"]):
        pass
    once, twice = adapter_rows(model, ["default"]), adapter_rows(model, ["default"])
    with once, pytest.raises(RuntimeError, match="one call at a time"), twice:
        pass
    with pytest.raises(ValueError, match="in training mode"), adapter_rows(model.train(), ["default"]):
        pass
