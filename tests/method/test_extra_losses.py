# SPDX-License-Identifier: Apache-2.0
"""The L1 and balance losses: against slow formulas, and in the loss of the model once."""

from __future__ import annotations

import warnings

import pytest
import torch
from peft import get_peft_model, inject_adapter_in_model
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from slim_core import SlimConfig, extra_losses
from slim_core.method import SlimLayer
from slim_core.method.losses import FORGOTTEN_AFTER
from tests.conftest import build
from tests.method import reference
from tests.method.test_checkpointing import adapt, train


pytestmark = pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")

BOTH = {"l1_coefficient": 0.5, "balance_coefficient": 2.0, "merge": "none"}


def of_task(logits: Tensor, ids: Tensor) -> Tensor:
    return cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def attached(way: str) -> nn.Module:
    config = SlimConfig(r=2, num_experts=3, init_weights=False, yield_strength=0.1, **BOTH)
    if way == "injected":
        return inject_adapter_in_model(config, build("llama")).train()
    config.task_type = "CAUSAL_LM" if way == "for a task" else None
    return get_peft_model(build("llama"), config).train()


@pytest.mark.parametrize("as_tuple", [False, True])
@pytest.mark.parametrize("way", ["by itself", "for a task", "injected"])
def test_a_training_forward_with_labels_has_them_in_its_loss(way, as_tuple, ids):
    model = attached(way)
    output = model(input_ids=ids, labels=ids, return_dict=not as_tuple)
    loss, logits = output[:2]
    losses = extra_losses(model)
    assert set(losses) == {"l1", "balance"} and not any(value.requires_grad for value in losses.values())
    assert all(value > 0.1 for value in losses.values())
    torch.testing.assert_close(loss, of_task(logits, ids) + losses["l1"] + losses["balance"])
    model.eval()
    loss, logits = model(input_ids=ids, labels=ids, return_dict=not as_tuple)[:2]
    torch.testing.assert_close(loss, of_task(logits, ids))


def test_their_gradient_is_that_of_adding_them_by_hand_and_no_more(ids):
    gradients = []
    for way in ("in the loss", "by hand", "in the loss and once more"):
        model = adapt(**BOTH)
        if way == "by hand":
            loss = of_task(model(input_ids=ids).logits, ids) + sum(extra_losses(model).values())
        else:
            loss = model(input_ids=ids, labels=ids).loss
        if way == "in the loss and once more":
            loss = loss + sum(extra_losses(model).values())
        loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(gradients[1], gradients[0])
    torch.testing.assert_close(gradients[2], gradients[0])


def test_nothing_is_added_where_no_adapter_learns(ids):
    model = adapt(**BOTH)
    model.requires_grad_(False)
    output = model(input_ids=ids, labels=ids)
    torch.testing.assert_close(output.loss, of_task(output.logits, ids))


def test_the_balance_loss_without_a_gradient_is_a_sentence(ids):
    model = adapt(reentrant=True, balance_coefficient=1.0)
    model(input_ids=ids)
    for ask in (lambda: extra_losses(model), lambda: model(input_ids=ids, labels=ids)):
        with pytest.raises(RuntimeError, match=r"balance loss has no gradient.*\"use_reentrant\": False"):
            ask()
    # Nobody wants one here.
    with torch.no_grad():
        assert model(input_ids=ids, labels=ids).loss.isfinite()


def test_a_balance_loss_with_part_of_its_gradient_is_a_sentence_too(ids):
    # The output head stands outside of what is checkpointed, so its term alone has a gradient.
    model = adapt(
        reentrant=True, balance_coefficient=1.0, target_modules=["q_proj", "lm_head"], distance_scope="token"
    )
    with pytest.raises(RuntimeError, match="balance loss has no gradient"):
        model(input_ids=ids, labels=ids)


def slow_balance(x: Tensor, contexts: tuple, state: dict, bias: Tensor, config: SlimConfig) -> Tensor:
    """E * sum_e f_e P_e of one router with this bias over the tokens `x` (T, C), token by token in float64."""
    slots, probability = [0.0] * config.num_experts, 0
    for token, context, count in zip(x, *contexts, strict=True):
        kept = reference.token_weights(token, state, config, context, int(count))
        mean, var = state["center"][kept["cluster"]], state["var"][kept["cluster"]]
        if config.distance_scope == "context":
            mean, var = state["token_mean"][0], state["token_var"][0]
        logits = state["router"].double() @ ((token - mean) / (var.double() + 1e-6).sqrt()) + bias
        probability = probability + logits[: config.num_experts].softmax(0) / len(x)
        slots = [s + (w > 0) for s, w in zip(slots, kept["weights"], strict=False)]
    return config.num_experts * sum(s / sum(slots) * p for s, p in zip(slots, probability, strict=True))


@pytest.mark.parametrize("scope", ["context", "token"])
def test_the_balance_loss_and_its_gradient_equal_the_slow_formula_over_valid_tokens(scope, ids):
    model = adapt(balance_coefficient=2.0, merge="none", distance_scope=scope)
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    train(model, ids)
    # A forward before it, so that terms of an older forward would be noticed.
    model(input_ids=ids + 1)
    seen = []
    for layer in (m for m in model.modules() if isinstance(m, SlimLayer)):
        layer.register_forward_pre_hook(lambda m, args: seen.append((m, args[0].detach().double())))
    model(input_ids=ids, attention_mask=mask)
    losses = extra_losses(model)
    assert list(losses) == ["balance"]
    terms = []
    for layer, x in seen:
        state = reference.layer_state(layer, "default")
        bias = state["router_bias"].double().requires_grad_()
        counted = mask.flatten() == 1
        contexts = [part.flatten(0, 1)[counted] for part in reference.batch_contexts(x, mask=mask)]
        terms.append(slow_balance(x.flatten(0, 1)[counted], contexts, state, bias, model.peft_config["default"]))
    assert len(terms) == 14
    expected = 2 * sum(terms) / len(terms)
    assert losses["balance"].item() == pytest.approx(expected.item(), rel=1e-5)
    # The last layer's router changes its own term only.
    losses["balance"].backward()
    expected.backward()
    actual = seen[-1][0].slim_router_bias["default"].grad
    assert bias.grad[:3].abs().max() > 1e-3
    torch.testing.assert_close(actual.double(), bias.grad, atol=1e-6, rtol=1e-4)


def test_evenly_used_experts_have_a_balance_of_one_and_a_single_favourite_of_e(ids):
    for favourite, expected in ((0.0, 1.0), (50.0, 3.0)):
        model = adapt(balance_coefficient=1.0, top_k=5 if favourite == 0 else 1, yield_strength=0.0)
        for name, parameter in model.named_parameters():
            if "slim_router" in name:
                torch.nn.init.zeros_(parameter)
            if "slim_router_bias" in name:
                parameter.data[0] = favourite
        model(input_ids=ids)
        assert extra_losses(model)["balance"].item() == pytest.approx(expected)


def test_the_l1_loss_equals_the_slow_formula(ids):
    model = adapt(l1_coefficient=0.25)
    expected = 0.0
    for layer in (m for m in model.modules() if isinstance(m, SlimLayer)):
        a, b = layer.slim_A["default"].detach().double(), layer.slim_B["default"].detach().double()
        for i in range(3):
            a_i, b_i = a[2 * i : 2 * i + 2], b[:, 2 * i : 2 * i + 2]
            expected += b_i.abs().sum() / (2 * layer.out_features) + a_i.abs().sum() / (2 * layer.in_features)
    model(input_ids=ids)
    losses = extra_losses(model)
    assert list(losses) == ["l1"]
    assert losses["l1"].item() == pytest.approx(0.25 * expected.item(), rel=1e-6)
    losses["l1"].backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == name.endswith(("slim_A.default", "slim_B.default")), name


@pytest.mark.parametrize("name", ["l1", "balance"])
def test_a_coefficient_is_a_factor(name, ids):
    losses = []
    for coefficient in (1.0, 4.0):
        model = adapt(**{f"{name}_coefficient": coefficient})
        model(input_ids=ids)
        losses.append(extra_losses(model)[name].item())
    assert losses[1] == pytest.approx(4 * losses[0])


def test_there_are_as_many_extra_losses_as_coefficients(ids):
    both, none = adapt(l1_coefficient=1.0, balance_coefficient=1.0), adapt()
    for model in (both, none):
        model(input_ids=ids)
    assert set(extra_losses(both)) == {"l1", "balance"}
    assert extra_losses(none) == {}
    assert extra_losses(build("llama")) == {}


@pytest.mark.parametrize("coefficient", ["l1_coefficient", "balance_coefficient"])
def test_a_training_loop_that_forgets_the_extra_losses_is_told_once(coefficient, ids):
    model = adapt(**{coefficient: 1.0})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(FORGOTTEN_AFTER - 1):
            model(input_ids=ids)
    with pytest.warns(UserWarning, match="extra_losses"):
        model(input_ids=ids)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2 * FORGOTTEN_AFTER):
            model(input_ids=ids)


def test_a_training_loop_that_asks_for_the_extra_losses_is_not_warned(ids):
    asking, without = adapt(l1_coefficient=1.0), adapt()
    evaluating = adapt(l1_coefficient=1.0).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(FORGOTTEN_AFTER + 1):
            asking(input_ids=ids)
            extra_losses(asking)
            without(input_ids=ids)
            evaluating(input_ids=ids)
