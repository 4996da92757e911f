# SPDX-License-Identifier: Apache-2.0
"""Masks and scaling folded into the factors: the same output, and no way back."""

import pytest
import torch

from slim_core import slice_factors
from slim_core.method import fold_masks
from tests.method.small import logits, slim_layers, trained


@pytest.mark.parametrize("merge", ["fast", "none", "dare"])
@pytest.mark.parametrize("rescale", [True, False])
def test_folding_changes_nothing_but_rounding(merge, rescale, ids):
    model = trained(ids, merge=merge, mask_rate=0.4, mask_rescale=rescale, alpha=3.0)
    before = logits(model, ids)
    for _ in range(2):
        fold_masks(model, "default")
        torch.testing.assert_close(logits(model, ids), before, rtol=1e-5, atol=1e-5)
    layer = next(iter(slim_layers(model).values()))
    if merge == "fast":
        assert (layer.slim_A["default"][:, ~layer.slim_columns["default"]] == 0).all()
        assert (layer.slim_B["default"][~layer.slim_rows["default"]] == 0).all()


def test_a_folded_adapter_can_be_neither_saved_nor_sliced_nor_trained(ids, tmp_path):
    model = trained(ids)
    fold_masks(model, "default")
    with pytest.raises(RuntimeError, match="were folded"):
        model.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="were folded"):
        slice_factors(model, "default")
    for layer in slim_layers(model).values():
        layer.slim_A["default"].requires_grad_(True)
    with pytest.raises(RuntimeError, match="were folded"):
        model.train()(ids)


def test_after_deletion_the_name_is_free_again(ids):
    model = trained(ids)
    config = model.peft_config["default"]
    fold_masks(model, "default")
    model.add_adapter("other", config)
    model.delete_adapter("default")
    assert not any(layer._folded for layer in slim_layers(model).values())


def test_sliced_factors_stay_sliced(ids):
    model = trained(ids, mask_rate=0.4)
    before = logits(model, ids)
    slice_factors(model, "default")
    fold_masks(model, "default")
    torch.testing.assert_close(logits(model, ids), before, rtol=1e-5, atol=1e-5)


def test_an_unknown_adapter_is_a_sentence(ids):
    with pytest.raises(ValueError, match="no SLIM adapter named 'other'"):
        fold_masks(trained(ids), "other")
