# SPDX-License-Identifier: Apache-2.0
"""Several SLIM adapters on one model: added, trained, deleted, active together."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model

from tests.conftest import build
from tests.method.small import logits, slim, slim_layers, train


def test_adding_an_adapter_does_not_change_the_active_one(ids):
    model = get_peft_model(build("llama"), slim(), "first")
    first = logits(model, ids)
    model.add_adapter("second", slim(num_experts=2, router_hidden=4))
    assert model.active_adapters == ["first"] and torch.equal(logits(model, ids), first)
    model.set_adapter("second")
    assert model.active_adapters == ["second"] and not torch.allclose(logits(model, ids), first)
    model.set_adapter("first")
    assert torch.equal(logits(model, ids), first)


def test_training_one_adapter_leaves_the_other_as_it_was(ids):
    model = get_peft_model(build("llama"), slim(), "first")
    model.add_adapter("second", slim())
    first = logits(model, ids)
    model.set_adapter("second")
    second = logits(model, ids)
    train(model, ids)
    assert not torch.allclose(logits(model, ids), second)
    model.set_adapter("first")
    assert torch.equal(logits(model, ids), first)


@pytest.mark.parametrize("deleted", ["first", "second"], ids=["the-active-one", "another"])
@pytest.mark.parametrize("scope", ["linear", "block"])
def test_a_deleted_adapter_leaves_nothing_behind(deleted, scope, ids):
    model = get_peft_model(build("llama"), slim(router_scope=scope, balance_coefficient=0.1), "first")
    model.add_adapter("second", slim(router_scope=scope, yield_mode="calibrated"))
    kept = {"first": "second", "second": "first"}[deleted]
    model.set_adapter(kept)
    expected = logits(model, ids)
    model.set_adapter(deleted)
    train(model, ids)  # so that sums and losses of the deleted adapter are waiting
    model.set_adapter("first")
    if deleted == "first":
        with pytest.warns(UserWarning, match="active adapter to second"):
            model.delete_adapter(deleted)
    else:
        model.delete_adapter(deleted)
    for layer in slim_layers(model).values():
        containers = {**vars(layer), **dict(layer.named_children())}
        holding = [
            name
            for name, value in containers.items()
            if name != "base_layer" and hasattr(value, "__contains__") and deleted in value
        ]
        assert holding == []
    assert not [name for name in model.state_dict() if name.endswith(f".{deleted}")]
    assert deleted not in model.peft_config
    assert deleted not in model.base_model.context.losses.balance
    assert model.active_adapters == [kept]
    assert torch.equal(logits(model, ids), expected)


@pytest.mark.parametrize("scope", ["linear", "block"])
def test_a_name_can_be_used_again_after_deletion(scope, ids):
    model = get_peft_model(build("llama"), slim(router_scope=scope), "kept")
    torch.manual_seed(3)
    model.add_adapter("again", slim(router_scope=scope))
    model.set_adapter("again")
    expected = logits(model, ids)
    train(model, ids)
    model.delete_adapter("again")
    torch.manual_seed(3)
    model.add_adapter("again", slim(router_scope=scope))
    model.set_adapter("again")
    assert torch.equal(logits(model, ids), expected)


def test_two_active_adapters_add_up(ids):
    # On the output head the logits are linear in what the adapters add.
    model = get_peft_model(build("llama"), slim(target_modules=["lm_head"], distance_scope="token"), "first")
    model.add_adapter("second", slim(target_modules=["lm_head"], distance_scope="token", num_experts=2))
    alone = []
    for names in (["first"], ["second"], ["first", "second"]):
        model.base_model.set_adapter(names)
        with model.disable_adapter():
            base = logits(model, ids)
        alone.append(logits(model, ids) - base)
    assert alone[0].abs().max() > 0.01 and alone[1].abs().max() > 0.01
    torch.testing.assert_close(alone[2], alone[0] + alone[1], atol=1e-5, rtol=0)
