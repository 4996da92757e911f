# SPDX-License-Identifier: Apache-2.0
"""Dynamic merging: survival rates, unbiasedness, and the fast forward against the masked product."""

import math

import pytest
import torch
from torch import nn

from slim_core import SlimConfig, slice_factors
from slim_core.method.context import ForwardContext
from slim_core.method.linear import Linear
from slim_core.method.merging import dare_mask, fast_masks, l1_penalty, module_seed, survivor_scale
from tests.method import reference


def make_layer(name="layer", **changes):
    sizes = {"r": 4, "num_experts": 3, "num_identity": 1, "top_k": 2, "context_warmup": 0}
    config = SlimConfig(**sizes, init_weights=False, **changes)
    torch.manual_seed(0)
    return Linear(nn.Linear(24, 20), "default", config, config.r, config.alpha, ForwardContext(), name).eval()


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.9])
def test_an_entry_survives_the_fast_mask_with_the_right_probability(rate):
    generator = torch.Generator().manual_seed(0)
    survived = 0.0
    for _ in range(400):
        columns, rows = fast_masks(40, 60, rate, generator=generator)
        survived += (rows.float().mean() * columns.float().mean()).item()
    # The standard error of the mean over 400 draws of 40 columns and 60 rows is below 0.004.
    assert survived / 400 == pytest.approx(1 - rate, abs=0.015)


def test_an_entry_survives_the_exact_mask_with_the_right_probability():
    mask = dare_mask(500, 400, 0.3, generator=torch.Generator().manual_seed(0))
    assert mask.float().mean().item() == pytest.approx(0.7, abs=0.005)


@pytest.mark.parametrize("merge", ["dare", "fast"])
def test_masked_training_is_unbiased_with_rescaling(merge):
    """The mean over many draws is the unmasked output, to within its own standard error."""
    masked = make_layer(merge=merge, mask_rate=0.4, mask_rescale=True, yield_strength=0.0, cluster_init="random")
    plain = make_layer(merge="none", yield_strength=0.0, cluster_init="random")
    x = torch.randn(2, 24)
    masked.requires_grad_(True).train()(x)  # tokens are normalised from here on
    plain.load_state_dict(masked.state_dict(), strict=False)
    expected = plain(x)
    with torch.no_grad():
        # Training forwards slide the clusters too, so each draw starts from the same state.
        state = {k: v.clone() for k, v in masked.state_dict().items()}
        draws = []
        for _ in range(2000):
            draws.append(masked(x))
            masked.load_state_dict(state)
    draws = torch.stack(draws)
    error = draws.std(0) / math.sqrt(len(draws))
    assert ((draws.mean(0) - expected).abs() < 5 * error + 1e-6).all()


@pytest.mark.parametrize("rescale", [False, True])
def test_the_fast_forward_equals_the_masked_product(rescale):
    layer = make_layer(merge="fast", mask_rate=0.5, mask_rescale=rescale)
    layer.slim_center["default"].normal_()
    x = torch.randn(9, 24)
    state = reference.layer_state(layer, "default")
    assert 0 < state["columns"].sum() < 24 and 0 < state["rows"].sum() < 20
    scaling = 32.0 / 4 * (2.0 if rescale else 1.0)
    config, contexts = layer.slim_config["default"], reference.alone(x)
    expected = layer.base_layer(x).double() + reference.slim_delta(x, state, config, scaling, contexts)
    torch.testing.assert_close(layer(x).double(), expected, rtol=1e-5, atol=1e-5)


def test_the_exact_forward_equals_the_product_masked_entry_by_entry():
    layer = make_layer(merge="dare", mask_rate=0.5)
    x = torch.randn(5, 24)
    config, state = layer.slim_config["default"], reference.layer_state(layer, "default")
    generator = torch.Generator().manual_seed(module_seed(config.mask_seed, "layer"))
    masks = [dare_mask(20, 24, 0.5, generator=generator) for _ in range(3)]
    expected = layer.base_layer(x).double()
    for t in range(5):
        weights = reference.token_weights(x[t].double(), state, config, x[t].double())["weights"]
        for i in range(3):
            product = reference.expert_product(i, state, config) * masks[i]
            expected[t] += weights[i] * 8.0 * (product @ x[t].double())
    torch.testing.assert_close(layer(x).double(), expected, rtol=1e-5, atol=1e-5)


def test_sliced_factors_are_smaller_and_give_the_same_output():
    layer = make_layer(merge="fast", mask_rate=0.6)
    x = torch.randn(3, 4, 24)
    before = layer(x)
    columns, rows = int(layer.slim_columns["default"].sum()), int(layer.slim_rows["default"].sum())
    slice_factors(layer, "default")
    assert layer.slim_A["default"].shape == (12, columns) and layer.slim_B["default"].shape == (rows, 12)
    assert columns < 24 and rows < 20
    torch.testing.assert_close(layer(x), before, rtol=1e-5, atol=1e-6)
    slice_factors(layer, "default")
    assert layer.slim_A["default"].shape == (12, columns)


def test_sliced_factors_cannot_be_trained():
    layer = make_layer(merge="fast", mask_rate=0.6)
    slice_factors(layer, "default")
    layer.train()
    layer(torch.randn(2, 24))  # frozen: runs as in evaluation
    layer.requires_grad_(True)
    with pytest.raises(RuntimeError, match="sliced for inference and can no longer be saved or trained"):
        layer(torch.randn(2, 24))


def test_slicing_an_unknown_adapter_is_a_sentence():
    with pytest.raises(ValueError, match="no SLIM adapter named 'other'"):
        slice_factors(make_layer(), "other")


def test_inference_masks_come_from_the_seed_and_the_modules_name():
    assert module_seed(0, "a") != module_seed(0, "b") != module_seed(1, "b")
    layers = [make_layer(n, mask_rate=0.5, mask_seed=s) for n, s in (("a", 0), ("a", 0), ("b", 0), ("a", 1))]
    one, same, other_name, other_seed = (
        torch.cat([m.slim_columns["default"], m.slim_rows["default"]]) for m in layers
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other_name) and not torch.equal(one, other_seed)


def test_l1_is_the_sum_over_experts_of_the_mean_absolute_entries():
    experts, r, c_in, c_out = 3, 4, 7, 5
    a, b = torch.randn(experts * r, c_in), torch.randn(c_out, experts * r)
    expected = 0.0
    for i in range(experts):
        expected += b[:, i * r : (i + 1) * r].double().abs().sum() / (r * c_out)
        expected += a[i * r : (i + 1) * r].double().abs().sum() / (r * c_in)
    assert l1_penalty(a, b, experts).item() == pytest.approx(expected.item(), rel=1e-6)


def test_survivors_are_scaled_only_on_request():
    assert survivor_scale(0.75, True) == 4.0
    assert survivor_scale(0.75, False) == 1.0
