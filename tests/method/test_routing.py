# SPDX-License-Identifier: Apache-2.0
"""Routing functions against the formulas, written out slowly."""

import math

import pytest
import torch

from slim_core import SlimConfig
from slim_core.method.routing import (
    Router,
    cluster_tables,
    domain_distance,
    nearest_cluster,
    normalise,
    route,
    soft_top_k,
    yield_weights,
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
    w = yield_weights(torch.zeros(2, 5), torch.tensor([1.0, 10.0]), 0.5, num_experts=3)
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


@pytest.mark.parametrize("statistic", ["max", "rms"])
@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("hidden", [0, 3])
def test_route_equals_the_formulas(statistic, calibrated, hidden):
    config = SlimConfig(
        num_experts=4,
        num_identity=2,
        top_k=3,
        distance=statistic,
        yield_mode="calibrated" if calibrated else "paper",
        yield_strength=0.7,
    )
    center, var = clusters()
    state = {
        "center": center,
        "var": var,
        "router": torch.randn(6, 7, dtype=torch.float64),
        "router_bias": torch.randn(6, dtype=torch.float64),
        "reference": torch.tensor(0.4, dtype=torch.float64),
    }
    if hidden:
        state["router_down"] = torch.randn(hidden, 7, dtype=torch.float64)
        state["router_up"] = torch.randn(7, hidden, dtype=torch.float64)
    x = 2 * torch.randn(40, 7, dtype=torch.float64)
    routing = route(
        x,
        cluster_tables(center, var),
        Router(state["router"], state["router_bias"], state.get("router_down"), state.get("router_up")),
        num_experts=4,
        top_k=3,
        statistic=statistic,
        strength=0.7,
        reference=state["reference"] if calibrated else None,
    )
    for t in range(40):
        slow = reference.token_weights(x[t], state, config)
        assert routing.cluster[t] == slow["cluster"]
        assert routing.distance[t].item() == pytest.approx(slow["distance"])
        torch.testing.assert_close(routing.weights[t], torch.tensor(slow["weights"], dtype=torch.float64))


def test_far_tokens_go_to_the_identity_experts():
    center, var = torch.zeros(1, 8), torch.ones(1, 8)
    router = Router(torch.randn(6, 8), torch.zeros(6))
    x = torch.randn(20, 8)
    x[:, 0] = torch.linspace(3, 3000, 20)
    # A router without weights, so that only yielding decides.
    flat = Router(torch.zeros_like(router.weight), router.bias)
    weights = route(x, cluster_tables(center, var), flat, num_experts=4, top_k=3).weights
    identity = weights[:, 4:].sum(-1)
    assert (identity.diff() >= -1e-6).all()
    assert identity[-1] == 1.0


def test_gradients_of_route_are_right():
    center, var = clusters(n=3, c=4)
    weight, bias = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, dtype=torch.float64)

    def weights(x, weight, bias):
        return route(x, cluster_tables(center, var), Router(weight, bias), num_experts=3, top_k=5).weights

    x = torch.randn(6, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(weights, tuple(t.requires_grad_() for t in (x, weight, bias)))
