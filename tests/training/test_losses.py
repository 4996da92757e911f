# SPDX-License-Identifier: Apache-2.0
"""Losses that forget less, against slow float64 code, and in training with any method."""

from __future__ import annotations

import json
import math

import pytest
import torch

from slim_core.training import TrainingError, train
from slim_core.training.losses import LOSSES, TaskLoss, cross_entropy, entropy_adaptive, mask_the_target
from tests.baselines.small import IDS, stirred
from tests.training.conftest import settings


def distribution(logits: list[float]) -> list[float]:
    exps = [math.exp(v - max(logits)) for v in logits]
    return [v / sum(exps) for v in exps]


def slow_eaft(logits: list[float], target: int) -> float:
    likeliest = distribution(sorted(logits, reverse=True)[:20])
    entropy = -sum(p * math.log(p) for p in likeliest if p > 0) / math.log(len(likeliest))
    return entropy * -math.log(distribution(logits)[target])


def slow_mask(logits: list[float], target: int, base: list[float], weight: float) -> float:
    rest = [i for i in range(len(logits)) if i != target]
    q, p = distribution([logits[i] for i in rest]), distribution([base[i] for i in rest])
    kl = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)
    return -math.log(distribution(logits)[target]) + weight * kl


def numbers(seed: int, tokens: int = 5, vocabulary: int = 33) -> torch.Tensor:
    return 3 * torch.randn(tokens, vocabulary, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


TARGETS = torch.tensor([0, 7, 7, 32, 11])


@pytest.mark.parametrize("vocabulary", [33, 12], ids=["more tokens than are looked at", "fewer"])
def test_eaft_is_the_slow_one(vocabulary):
    logits, targets = numbers(1, vocabulary=vocabulary), TARGETS.clamp(max=vocabulary - 1)
    actual = entropy_adaptive(logits, targets, None, 0.0)
    expected = [slow_eaft(row, t) for row, t in zip(logits.tolist(), targets.tolist(), strict=True)]
    assert actual.tolist() == pytest.approx(expected, rel=1e-6)


def test_eaft_teaches_nothing_where_the_model_is_sure_and_all_where_it_knows_nothing():
    sure, even = torch.zeros(1, 33), torch.zeros(1, 33)
    sure[0, 3] = 100.0
    target = torch.tensor([5])
    assert entropy_adaptive(sure, target, None, 0.0).item() == pytest.approx(0, abs=1e-6)
    assert entropy_adaptive(even, target, None, 0.0).item() == pytest.approx(math.log(33), rel=1e-5)


def test_the_uncertainty_has_no_gradient():
    logits = numbers(1).requires_grad_()
    (gradient,) = torch.autograd.grad(entropy_adaptive(logits, TARGETS, None, 0.0).sum(), logits)
    weights = entropy_adaptive(logits, TARGETS, None, 0.0) / cross_entropy(logits, TARGETS, None, 0.0)
    (plain,) = torch.autograd.grad((cross_entropy(logits, TARGETS, None, 0.0) * weights.detach()).sum(), logits)
    assert torch.allclose(gradient, plain)


@pytest.mark.parametrize("weight", [0.0, 1.0, 2.5])
def test_mask_the_target_is_the_slow_one(weight):
    logits, base = numbers(1), numbers(2).float()
    actual = mask_the_target(logits, TARGETS, base, weight)
    rows = zip(logits.tolist(), TARGETS.tolist(), base.tolist(), strict=True)
    assert actual.tolist() == pytest.approx([slow_mask(row, t, b, weight) for row, t, b in rows], rel=1e-5)


def test_mask_the_target_holds_nothing_back_of_what_is_learned():
    """Whatever the base thinks of the target itself, the divergence is the same, and it is 0 at the base."""
    base = numbers(2).float()
    moved = base.clone()
    moved[torch.arange(5), TARGETS] += 4.0
    kl = mask_the_target(moved, TARGETS, base, 1.0) - cross_entropy(moved, TARGETS, base, 1.0)
    assert kl.abs().max() < 1e-5
    logits = numbers(1).requires_grad_()
    loss = mask_the_target(logits, TARGETS, base, 1.0) - cross_entropy(logits, TARGETS, base, 1.0)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert torch.isfinite(gradient).all() and (gradient[torch.arange(5), TARGETS] == 0).all()


@pytest.mark.parametrize("method", ["lora", "slim", "mixlora"])
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_that_of_the_tokens_that_are_learned_and_a_method_still_adds_its_own(name, method):
    options = {"balance_coefficient": 0.5} if method == "mixlora" else {}
    model = stirred(method, **options)
    labels = IDS.clone()
    labels[:, :4] = -100
    with torch.no_grad(), model.disable_adapter():
        base = model(input_ids=IDS).logits[:, 3:-1].flatten(0, 1)
    loss = TaskLoss(model, name, 0.5)
    model.train()
    inputs = {"input_ids": IDS, "labels": labels}
    with loss.knowing_the_base(inputs):
        output = model(**inputs)
    own = sum(model.base_model.context.losses.added.values()) if method == "mixlora" else 0.0
    logits = output.logits[:, 3:-1].flatten(0, 1)
    expected = LOSSES[name].of_tokens(logits, IDS[:, 4:].flatten(), base, 0.5).mean() + own
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-4)
    if method != "slim":  # whose clusters have learned from the first forward
        with loss.knowing_the_base(inputs):
            shared = model(**inputs, num_items_in_batch=torch.tensor(48)).loss
        assert (shared - own / 2).item() == pytest.approx((expected - own).item() / 2, rel=1e-3)
    # In evaluation it is the cross entropy.
    model.eval()
    evaluated = model(**inputs)
    plain = cross_entropy(evaluated.logits[:, 3:-1].flatten(0, 1), IDS[:, 4:].flatten(), None, 0.0).mean()
    assert evaluated.loss.item() == pytest.approx(plain.item(), rel=1e-5)


@pytest.mark.parametrize("name", ["eaft", "mask-the-target"])
def test_a_run_with_another_loss_is_another_adapter_and_says_so(name, base, pairs, tmp_path):
    for loss in ("cross-entropy", name):
        train(settings(base, pairs, tmp_path / loss, methods=["lora"], loss=loss, max_steps=3))
    losses = {
        loss: json.loads((tmp_path / loss / "training.json").read_text("utf-8"))["arguments"]["loss"]
        for loss in ("cross-entropy", name)
    }
    assert losses == {loss: loss for loss in losses}
    files = [(tmp_path / loss / "adapter_model.safetensors").read_bytes() for loss in losses]
    assert files[0] != files[1]


BAD = {
    "no such loss": ({"loss": "kl"}, "--loss must be one of cross-entropy, eaft, mask-the-target, not kl"),
    "a factor of nothing": ({"loss": "eaft", "loss_weight": 2.0}, "--loss-weight has no meaning with --loss eaft"),
    "a negative factor": ({"loss": "mask-the-target", "loss_weight": -1.0}, "--loss-weight must be 0 or more"),
    "no such method": ({"options": {"mola": {"r": 2}}}, "--option names mola, which is not trained here"),
    "no such option": ({"options": {"slim": {"r": 2}}}, r"--option slim.r: slim has no such option.*pass --slim"),
    "a wrong value": (
        {"methods": ["disel"], "options": {"disel": {"gate_rate": 0}}},
        "The disel adapter does not fit .*`gate_rate` must be above 0",
    ),
    "patience of nothing": ({"early_stopping": 0}, "--early-stopping must be 1 or more, not 0"),
    "Linears of a method that has its own": (
        {"methods": ["lora-mlp"], "target_modules": ["q_proj"]},
        "lora-mlp chooses its Linears itself; leave --target out",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_is_refused_in_a_sentence(name, base, pairs, tmp_path):
    changes, words = BAD[name]
    with pytest.raises(TrainingError, match=words):
        train(settings(base, pairs, tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()
