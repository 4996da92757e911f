# SPDX-License-Identifier: Apache-2.0
"""Routing functions against the formulas, written out slowly."""

import math

import pytest
import torch

from slim_core import SlimConfig
from slim_core.method.clusters import LEVELS
from slim_core.method.gate import EarlierExcess, Yielding, apply_gate, lower_logits
from slim_core.method.routing import (
    Router,
    cluster_tables,
    domain_distance,
    nearest_cluster,
    normalise,
    route,
    soft_top_k,
)
from tests.method import reference


def clusters(n=5, c=7):
    return torch.randn(n, c, dtype=torch.float64), torch.rand(n, c, dtype=torch.float64) + 0.1


def test_nearest_cluster_is_the_one_of_least_euclidean_distance():
    center, var = clusters(n=9, c=4)
    x = torch.randn(200, 4, dtype=torch.float64)
    assert torch.equal(nearest_cluster(x, cluster_tables(center, var)), torch.cdist(x, center).argmin(-1))


def test_a_large_common_offset_does_not_blur_the_nearest_cluster():
    # Activations of real models have channels of size 1000 in every token.
    center, var = clusters(n=9, c=64)
    offset = torch.zeros(64, dtype=torch.float64)
    offset[3] = 3000.0
    x = torch.randn(500, 64, dtype=torch.float64)
    expected = torch.cdist(x, center).argmin(-1)
    tables = cluster_tables((center + offset).float(), var.float())
    agreement = (nearest_cluster((x + offset).float(), tables) == expected).float().mean()
    assert agreement > 0.99


def test_normalise_uses_each_tokens_own_cluster():
    center, var = clusters()
    x = torch.randn(6, 7, dtype=torch.float64)
    cluster = torch.tensor([4, 0, 0, 2, 3, 1])
    z = normalise(x, cluster_tables(center, var), cluster)
    for t in range(6):
        expected = (x[t] - center[cluster[t]]) / torch.sqrt(var[cluster[t]] + 1e-6)
        torch.testing.assert_close(z[t], expected)


def test_normalise_leaves_its_inputs_alone():
    center, var = clusters()
    x = torch.randn(6, 7, dtype=torch.float64)
    before = x.clone(), center.clone()
    normalise(x, cluster_tables(center, var), torch.zeros(6, dtype=torch.int64))
    assert torch.equal(x, before[0]) and torch.equal(center, before[1])


@pytest.mark.parametrize(("statistic", "expected"), [("max", 4.0 - 1), ("rms", math.sqrt((1 + 16 + 4 + 0) / 4) - 1)])
def test_distance_is_the_statistic_minus_one(statistic, expected):
    z = torch.tensor([[1.0, -4.0, 2.0, 0.0]])
    assert domain_distance(z, statistic).item() == pytest.approx(expected)


def test_yielding_lowers_lora_experts_only():
    w = lower_logits(torch.zeros(2, 5), torch.tensor([1.0, 10.0]), 0.5, num_experts=3)
    assert w.tolist() == [[-0.5] * 3 + [0.0] * 2, [-5.0] * 3 + [0.0] * 2]


@pytest.mark.parametrize("k", [1, 2, 5])
def test_soft_top_k_keeps_k_and_sums_to_one(k):
    w = torch.randn(50, 5, dtype=torch.float64)
    kept = soft_top_k(w, k)
    assert ((kept > 0).sum(-1) == k).all()
    torch.testing.assert_close(kept.sum(-1), torch.ones(50, dtype=torch.float64))
    soft = w.softmax(-1)
    soft[soft < soft.topk(k).values[:, -1:]] = 0
    torch.testing.assert_close(kept, soft / soft.sum(-1, keepdim=True))


def test_soft_top_k_keeps_exactly_k_of_equal_logits():
    assert ((soft_top_k(torch.zeros(3, 6), 2) > 0).sum(-1) == 2).all()


def test_soft_top_k_survives_logits_that_underflow():
    kept = soft_top_k(torch.tensor([[0.0, -1e4, -1e4, -2e4]]), 2)
    assert kept.isfinite().all() and kept.sum() == 1


def test_a_gate_multiplies_the_lora_weights_and_the_identity_experts_share_the_rest():
    weights = torch.tensor([[0.6, 0.0, 0.4, 0.0], [0.7, 0.3, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]])
    gated = apply_gate(weights, torch.tensor([1.0, 0.5, 0.0]), num_experts=2)
    torch.testing.assert_close(
        gated, torch.tensor([[0.6, 0.0, 0.4, 0.0], [0.35, 0.15, 0.25, 0.25], [0.0, 0.0, 0.5, 0.5]])
    )


def test_a_gate_without_identity_experts_leaves_weights_that_do_not_sum_to_one():
    weights = torch.tensor([[0.6, 0.4], [0.6, 0.4]])
    gated = apply_gate(weights, torch.tensor([0.5, 0.0]), num_experts=2)
    torch.testing.assert_close(gated, torch.tensor([[0.3, 0.2], [0.0, 0.0]]))


def random_state(hidden: int = 0) -> dict[str, torch.Tensor]:
    center, var = clusters()
    mean, spread = clusters(n=1)
    state = {
        "center": center,
        "var": var,
        "router": torch.randn(6, 7, dtype=torch.float64),
        "router_bias": torch.randn(6, dtype=torch.float64),
        "token_mean": mean,
        "token_var": spread,
        "reference": torch.rand(len(LEVELS), 16, dtype=torch.float64).cumsum(0) / 3,
    }
    if hidden:
        state["router_down"] = torch.randn(hidden, 7, dtype=torch.float64)
        state["router_up"] = torch.randn(7, hidden, dtype=torch.float64)
    return state


@pytest.mark.parametrize("scope", ["context", "token"])
@pytest.mark.parametrize("statistic", ["max", "rms"])
@pytest.mark.parametrize("mode", ["gate", "calibrated", "paper"])
@pytest.mark.parametrize("hidden", [0, 3])
@pytest.mark.parametrize("carry_up", [False, True])
def test_route_equals_the_formulas(scope, statistic, mode, hidden, carry_up):
    config = SlimConfig(
        num_experts=4,
        num_identity=2,
        top_k=3,
        distance_scope=scope,
        distance=statistic,
        yield_mode=mode,
        yield_strength=0.2,
        yield_quantile=0.8,
        context_warmup=0,
        carry_up=carry_up,
    )
    earlier = torch.rand(40, 3, dtype=torch.float64) * 4
    state = random_state(hidden)
    x, context = 2 * torch.randn(40, 7, dtype=torch.float64), 2 * torch.randn(40, 7, dtype=torch.float64)
    contextual = scope == "context"
    count = torch.arange(1, 41)
    known = torch.tensor([reference.in_domain(state["reference"], 0.8, int(c)) for c in count], dtype=torch.float64)
    normal = (state["token_mean"], state["token_var"]) if contextual else (None, None)
    before = EarlierExcess(earlier.sum(1), 3) if config.carries_up else None
    routing = route(
        x,
        cluster_tables(state["center"], state["var"]),
        Router(state["router"], state["router_bias"], state.get("router_down"), state.get("router_up"), *normal),
        num_experts=4,
        top_k=3,
        statistic=statistic,
        yielding=Yielding(mode, 0.2, None if mode == "paper" else known, earlier=before),
        context=context if contextual else None,
    )
    assert mode != "gate" or ((routing.gate > 0) & (routing.gate < 1)).any()
    for t in range(40):
        slow = reference.token_weights(x[t], state, config, context[t], t + 1, earlier[t].tolist())
        assert routing.cluster[t] == slow["cluster"]
        for name in ("distance", "gate", "reference", "excess"):
            assert getattr(routing, name)[t].item() == pytest.approx(slow[name]), name
        torch.testing.assert_close(routing.weights[t], torch.tensor(slow["weights"], dtype=torch.float64))


FLAT = Router(torch.zeros(6, 8), torch.zeros(6))


def growing() -> torch.Tensor:
    """(20, 8) tokens farther and farther away."""
    x = torch.randn(20, 8)
    x[:, 0] = torch.linspace(3, 3000, 20)
    return x


@pytest.mark.parametrize("mode", ["gate", "calibrated", "paper"])
def test_far_tokens_go_to_the_identity_experts(mode):
    # A router without weights, so that only yielding decides.
    tables = cluster_tables(torch.zeros(1, 8), torch.ones(1, 8))
    known = None if mode == "paper" else torch.tensor(0.5)
    weights = route(
        growing(),
        tables,
        FLAT,
        num_experts=4,
        top_k=3,
        statistic="max",
        yielding=Yielding(mode, 0.1, known),
    ).weights
    identity = weights[:, 4:].sum(-1)
    assert (identity.diff() >= -1e-6).all()
    assert identity[0] < 1.0 and identity[-1] == 1.0


def test_a_closed_gate_is_closed_whatever_the_distance_and_the_router():
    x = torch.randn(6, 8)
    steep = Router(1e3 * torch.randn(6, 8), torch.tensor([1e6, 0, 0, 0, 0, 0]))
    closed = torch.tensor([True, False] * 3)
    routing = route(
        x,
        cluster_tables(torch.zeros(1, 8), torch.ones(1, 8)),
        steep,
        num_experts=4,
        top_k=3,
        statistic="rms",
        yielding=Yielding("gate", 1.0, torch.tensor(1e9), closed),
    )
    assert routing.gate.tolist() == [0.0, 1.0] * 3
    assert (routing.weights[closed] == torch.tensor([0, 0, 0, 0, 0.5, 0.5])).all()
    assert (routing.weights[~closed, :4].sum(-1) > 0).all()


def test_each_token_may_have_a_strength_of_its_own():
    x = growing()
    strength = torch.linspace(0, 1, 20)
    options = {"num_experts": 4, "top_k": 3, "statistic": "rms"}
    tables, known = cluster_tables(torch.zeros(1, 8), torch.ones(1, 8)), torch.tensor(0.5)
    together = route(x, tables, FLAT, **options, yielding=Yielding("gate", strength, known))
    for t in range(20):
        alone = route(x[t : t + 1], tables, FLAT, **options, yielding=Yielding("gate", strength[t].item(), known))
        torch.testing.assert_close(alone.weights[0], together.weights[t])


@pytest.mark.parametrize("contextual", [False, True])
@pytest.mark.parametrize("mode", ["gate", "calibrated", "paper"])
def test_gradients_of_route_are_right(mode, contextual):
    center, var = clusters(n=3, c=4)
    weight, bias = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    context = torch.randn(6, 4, dtype=torch.float64) if contextual else None
    normal = clusters(n=1, c=4) if contextual else (None, None)
    known = None if mode == "paper" else torch.tensor(0.1, dtype=torch.float64)

    def weights(x, weight, bias):
        return route(
            x,
            cluster_tables(center, var),
            Router(weight, bias, None, None, *normal),
            num_experts=3,
            top_k=5,
            statistic="max",
            yielding=Yielding(mode, 0.1, known),
            context=context,
        ).weights

    x = torch.randn(6, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(weights, tuple(t.requires_grad_() for t in (x, weight, bias)))


@pytest.mark.parametrize("hidden", [0, 3])
def test_a_router_folds_its_normalisation_into_its_weights(hidden):
    state = random_state(hidden)
    router = Router(
        *(state.get(name) for name in ("router", "router_bias", "router_down", "router_up", "token_mean", "token_var"))
    )
    x = torch.randn(10, 7, dtype=torch.float64)
    z = (x - state["token_mean"]) / (state["token_var"] + 1e-6).sqrt()
    for t, logits in enumerate(router.logits(x)):
        expected = torch.tensor(reference.router_logits(z[t], state), dtype=torch.float64)
        torch.testing.assert_close(logits, expected)
