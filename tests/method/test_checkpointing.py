# SPDX-License-Identifier: Apache-2.0
"""Gradient checkpointing runs a forward twice and changes nothing; the extra losses and their gradients."""

from __future__ import annotations

import warnings

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor

from slim_core import SlimConfig, extra_losses
from slim_core.method import SlimLayer
from slim_core.method.losses import FORGOTTEN_AFTER
from tests.conftest import build
from tests.method import reference


pytestmark = pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")

VARIANTS = {
    "no merging": {"merge": "none"},
    "fast merging": {"merge": "fast", "mask_rate": 0.5},
    "fast merging, random centres": {"merge": "fast", "mask_rate": 0.5, "cluster_init": "random"},
    "exact merging": {"merge": "dare", "mask_rate": 0.5},
    "dropout": {"merge": "none", "dropout": 0.5},
    "block router": {"merge": "none", "router_scope": "block"},
    "calibrated": {"merge": "none", "yield_mode": "calibrated", "yield_quantile": 0.5},
    "warm-up and turns": {"merge": "none", "yield_quantile": 0.5, "context_warmup": 2, "turn_opening": [7]},
    "tokens": {"merge": "none", "distance_scope": "token", "yield_quantile": 0.5},
    "tokens, the paper's": {"distance_scope": "token", "yield_mode": "paper", "distance": "max"},
}


def adapt(reentrant: bool | None = None, **changes) -> PeftModel:
    """A model in training mode; with gradient checkpointing of either kind unless `reentrant` is None."""
    # Little yielding: tokens of a random model are far from their clusters, and without LoRA there is no gradient.
    start = {"r": 2, "num_experts": 3, "num_identity": 2, "num_clusters": 4, "init_weights": False}
    start["yield_strength"] = 0.1
    torch.manual_seed(0)
    model = get_peft_model(build("llama"), SlimConfig(**(start | changes)))
    if reentrant is not None:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    return model.train()


def train(model: PeftModel, ids: Tensor, steps: int = 3, with_losses: bool = False) -> list[dict[str, Tensor]]:
    """The gradients of each step."""
    torch.manual_seed(1)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    gradients = []
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    for step in range(steps):
        loss = model(input_ids=ids.roll(step), attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss
        if with_losses:
            loss = loss + sum(extra_losses(model).values())
        loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        optimizer.step()
        optimizer.zero_grad()
    return gradients


def statistics(model: PeftModel) -> dict[str, Tensor]:
    return {k: v for k, v in model.state_dict().items() if any(n in k for n in SlimLayer.statistic_names)}


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
def test_checkpointing_changes_neither_gradients_nor_clusters(variant, reentrant, ids):
    plain = adapt(**VARIANTS[variant])
    checkpointed = adapt(reentrant, **VARIANTS[variant])
    expected, actual = train(plain, ids), train(checkpointed, ids)
    assert any(g.any() for name, g in expected[0].items() if "slim_router" in name)
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(statistics(checkpointed), statistics(plain), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_counts_each_token_once(reentrant, ids):
    model = adapt(reentrant)
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    for _ in range(3):
        model(input_ids=ids, attention_mask=mask, labels=ids).loss.backward()
    counts = {int(v.sum()) for k, v in statistics(model).items() if "slim_count" in k}
    assert counts == {3 * int(mask.sum())}


def test_the_balance_loss_has_the_same_gradient_with_checkpointing(ids):
    settings = {"merge": "none", "balance_coefficient": 3.0, "l1_coefficient": 0.5}
    expected = train(adapt(**settings), ids, with_losses=True)
    actual = train(adapt(reentrant=False, **settings), ids, with_losses=True)
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("reentrant", [None, False])
def test_a_reference_forward_without_the_adapter_changes_nothing(reentrant, ids):
    # Preference tuning asks the base model between a forward and its backward.
    found = []
    for asks in (False, True):
        model = adapt(reentrant, merge="none", balance_coefficient=3.0)
        for step in range(2):
            loss = model(input_ids=ids + step, labels=ids).loss
            if asks:
                with model.disable_adapter(), torch.no_grad():
                    model(input_ids=ids)
            (loss + sum(extra_losses(model).values())).backward()
        found.append(({n: p.grad for n, p in model.named_parameters() if p.grad is not None}, statistics(model)))
    torch.testing.assert_close(found[1], found[0], atol=1e-6, rtol=1e-5)


def test_the_balance_loss_without_a_gradient_is_a_sentence(ids):
    model = adapt(reentrant=True, balance_coefficient=1.0)
    model(input_ids=ids, labels=ids)
    with pytest.raises(RuntimeError, match=r"balance loss has no gradient.*\"use_reentrant\": False"):
        extra_losses(model)


def test_a_balance_loss_with_part_of_its_gradient_is_a_sentence_too(ids):
    # The output head stands outside of what is checkpointed, so its term alone has a gradient.
    model = adapt(
        reentrant=True, balance_coefficient=1.0, target_modules=["q_proj", "lm_head"], distance_scope="token"
    )
    model(input_ids=ids, labels=ids)
    with pytest.raises(RuntimeError, match="balance loss has no gradient"):
        extra_losses(model)


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
    train(model, ids, with_losses=True)
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
    found = []
    for coefficient in (1.0, 4.0):
        model = adapt(**{f"{name}_coefficient": coefficient})
        model(input_ids=ids)
        found.append(extra_losses(model)[name].item())
    assert found[1] == pytest.approx(4 * found[0])


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
