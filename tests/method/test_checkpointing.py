# SPDX-License-Identifier: Apache-2.0
"""Gradient checkpointing runs a forward twice and changes nothing, the balance loss and its gradient included."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor

from slim_core import SlimConfig, extra_losses
from slim_core.method import SlimLayer
from tests.conftest import build
from tests.method.small import slim, tiny_bart


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


def train(model: PeftModel, ids: Tensor, steps: int = 3) -> list[dict[str, Tensor]]:
    """The gradients of each step."""
    torch.manual_seed(1)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    gradients = []
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    for step in range(steps):
        loss = model(input_ids=ids.roll(step), attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss
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


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("scope", ["linear", "block"])
def test_checkpointing_changes_nothing_where_a_decoder_attends_to_an_encoder(scope, reentrant, ids):
    runs = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = get_peft_model(
            tiny_bart(), slim(target_modules="all-linear", merge="none", router_scope=scope)
        ).train()
        if checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        # The encoder reads more tokens than the decoder.
        model(input_ids=ids, labels=ids[:, :9].contiguous()).loss.backward()
        runs.append(({n: p.grad for n, p in model.named_parameters() if p.grad is not None}, statistics(model)))
    torch.testing.assert_close(runs[1], runs[0], atol=1e-6, rtol=1e-5)


def test_the_balance_loss_has_the_same_gradient_with_checkpointing(ids):
    settings = {"merge": "none", "balance_coefficient": 3.0, "l1_coefficient": 0.5}
    expected = train(adapt(**settings), ids)
    actual = train(adapt(reentrant=False, **settings), ids)
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("reentrant", [None, False])
def test_a_reference_forward_without_the_adapter_changes_nothing(reentrant, ids):
    # Preference tuning asks the base model between a forward and its backward.
    runs = []
    for asks in (False, True):
        model = adapt(reentrant, merge="none", balance_coefficient=3.0)
        for step in range(2):
            loss = model(input_ids=ids + step, labels=ids).loss
            if asks:
                with model.disable_adapter(), torch.no_grad():
                    model(input_ids=ids)
            loss.backward()
            assert not extra_losses(model)["balance"].requires_grad
        runs.append(({n: p.grad for n, p in model.named_parameters() if p.grad is not None}, statistics(model)))
    torch.testing.assert_close(runs[1], runs[0], atol=1e-6, rtol=1e-5)
