# SPDX-License-Identifier: Apache-2.0
"""Stacked experts against loops in float64: all of them, the best of them, and each chosen one by itself."""

import pytest
import torch

from slim_core.baselines.stacked import chosen, chosen_hidden, spread, top_k, weighted_sum
from tests.baselines.reference import best, lora


SIZES = {
    "several": (5, 3, 2, 7, 4),
    "one expert": (4, 1, 2, 6, 3),
    "rank one": (3, 4, 1, 5, 6),
    "one token": (1, 3, 2, 4, 4),
    "no token": (0, 3, 2, 4, 4),
}


def experts(number, r, c_in, c_out, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(number, r, c_in, generator=generator, dtype=dtype)
    return a, torch.randn(number, c_out, r, generator=generator, dtype=dtype)


def tokens(*shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2), dtype=dtype)


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("weighted", [True, False])
def test_the_weighted_sum_is_the_loops(name, weighted):
    count, number, r, c_in, c_out = SIZES[name]
    (a, b), x = experts(number, r, c_in, c_out), tokens(count, c_in)
    weights = tokens(count, number).softmax(-1) if weighted else None
    actual = weighted_sum(x, a, b, weights)
    assert actual.shape == (count, c_out)
    for t in range(count):
        expected = sum((1 if weights is None else weights[t, e]) * lora(a[e], b[e], x[t]) for e in range(number))
        assert torch.allclose(actual[t], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_best_experts_are_the_loops(k):
    (a, b), x, p = experts(3, 2, 7, 4), tokens(6, 7), tokens(6, 3).softmax(-1)
    weights, index = top_k(p, k)
    actual = weighted_sum(x, a, b, spread(weights, index, 3))
    for t in range(6):
        expected = sum(w * lora(a[e], b[e], x[t]) for e, w in best(p[t].tolist(), k).items())
        assert torch.allclose(actual[t], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("own_inputs", [True, False], ids=["an input for each", "one input"])
def test_chosen_experts_are_the_loops(own_inputs):
    (a, b), index = experts(4, 3, 5, 6), torch.tensor([[0, 3], [2, 1], [3, 3]])
    x = tokens(3, 2, 5) if own_inputs else tokens(3, 5)
    actual = chosen(x, a, b, index)
    assert actual.shape == (3, 2, 6)
    for t in range(3):
        for slot in range(2):
            e = index[t, slot]
            expected = lora(a[e], b[e], x[t, slot] if own_inputs else x[t])
            assert torch.allclose(actual[t, slot], expected, rtol=1e-12, atol=1e-12)


def test_an_expert_that_overflows_spoils_no_token_of_others():
    """In half precision what is not wanted may be infinite, and zero times that is no number."""
    a, b = experts(2, 1, 2, 3, torch.float16)
    a[1] = 6e4
    x = torch.full((1, 2), 8.0, dtype=torch.float16)
    only_first = torch.tensor([[1.0, 0.0]])
    assert torch.isfinite(weighted_sum(x, a, b, only_first)).all()
    assert torch.isfinite(chosen_hidden(x, a, torch.tensor([[0]]))).all()


def test_gradients_reach_every_weight_that_was_used():
    (a, b), x = experts(3, 2, 5, 4), tokens(4, 5)
    a, b = a.requires_grad_(), b.requires_grad_()
    weights = tokens(4, 3).softmax(-1).requires_grad_()
    assert torch.autograd.gradcheck(weighted_sum, (x, a, b, weights))
