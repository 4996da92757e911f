# SPDX-License-Identifier: Apache-2.0
"""Sliding clusters against the formulas: moving averages, first centres, padding and tokens that are not finite."""

import pytest
import torch

from slim_core.method.clusters import first_clusters, slide, sum_about, sum_tokens
from slim_core.method.routing import VARIANCE_EPS, cluster_tables, domain_distance, nearest_cluster, normalise
from slim_core.method.sliding_clusters import PendingSums
from tests.method import reference


def see(x, center, var, valid=None, quantile=None):
    tables = cluster_tables(center, var)
    cluster = nearest_cluster(x, tables)
    z = normalise(x, tables, cluster)
    return sum_tokens(z, domain_distance(z, "max"), cluster, valid, len(center), quantile)


def start(n=4, c=5):
    center, var = torch.randn(n, c, dtype=torch.float64), torch.rand(n, c, dtype=torch.float64) + 0.5
    return center, var, torch.zeros(n, dtype=torch.int64)


def test_sliding_equals_the_mixture_of_old_and_new():
    center, var, count = start()
    for _ in range(3):
        x = torch.randn(30, 5, dtype=torch.float64) + 1
        expected = reference.slide(center, var, x, momentum=0.8)
        slide(center, var, var, count, None, see(x, center, var), momentum=0.8)
        # The tokens are normalised with the floor under the variance, which the slow formula does not have.
        torch.testing.assert_close(center, expected[0], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(var, expected[1], rtol=1e-5, atol=1e-5)
    assert count.sum() == 90


def test_clusters_without_tokens_stay():
    center, var, count = start(n=2)
    center[1] += 1000
    before = center[1].clone(), var[1].clone()
    slide(center, var, var, count, None, see(torch.randn(10, 5, dtype=torch.float64), center, var), momentum=0.5)
    assert torch.equal(center[1], before[0]) and torch.equal(var[1], before[1])
    assert count.tolist() == [10, 0]


def test_one_token_a_step_does_not_collapse_the_variance():
    center, var, count = (torch.zeros(1, 3), torch.ones(1, 3), torch.zeros(1, dtype=torch.int64))
    for _ in range(2000):
        slide(center, var, var, count, None, see(torch.randn(1, 3) * 2 + 5, center, var), momentum=0.98)
    assert (center - 5).abs().max() < 1
    assert ((var - 4).abs() < 2).all()


def test_padding_and_overflow_do_not_count():
    center, var, _ = start()
    x = torch.randn(12, 5, dtype=torch.float64)
    valid = torch.arange(12) % 3 != 0
    expected = see(x[valid], center, var, quantile=0.5)
    x[~valid] = 1e6
    for got, want in zip(see(x, center, var, valid, quantile=0.5), expected, strict=True):
        torch.testing.assert_close(got, want)
    for huge in (1e20, float("inf"), float("nan")):
        x[~valid] = huge
        for got, want in zip(see(x.float(), center.float(), var.float(), None, quantile=0.5), expected, strict=True):
            torch.testing.assert_close(got, want.float(), rtol=1e-4, atol=1e-4)
    x[~valid] = float("inf")
    for got, want in zip(see(x, center, var, None, quantile=0.5), expected, strict=True):
        torch.testing.assert_close(got, want)


def test_a_batch_of_padding_changes_nothing():
    center, var, count = start()
    reference_distance = torch.tensor(1.5, dtype=torch.float64)
    before = center.clone(), var.clone()
    sums = see(torch.randn(4, 5, dtype=torch.float64), center, var, torch.zeros(4, dtype=torch.bool), quantile=0.9)
    slide(center, var, var, count, reference_distance, sums, momentum=0.5)
    assert torch.equal(center, before[0]) and torch.equal(var, before[1])
    assert reference_distance == 1.5 and count.sum() == 0


def test_the_reference_is_a_moving_quantile():
    center, var, count = start()
    running = torch.tensor(0.0, dtype=torch.float64)
    expected = None
    for step in range(4):
        x = torch.randn(50, 5, dtype=torch.float64) * (1 + step)
        tables = cluster_tables(center, var)
        distance = domain_distance(normalise(x, tables, nearest_cluster(x, tables)), "max")
        latest = distance.quantile(0.9)
        expected = latest if expected is None else 0.75 * expected + 0.25 * latest
        slide(center, var, var, count, running, see(x, center, var, quantile=0.9), momentum=0.75)
        torch.testing.assert_close(running, expected)


def test_sums_of_two_halves_add_up_to_the_whole():
    center, var, _ = start()
    x = torch.randn(20, 5, dtype=torch.float64)
    both = PendingSums(None, see(x[:8], center, var), torch.zeros(4), see(x[:8], center, var))
    both.add(see(x[8:], center, var), see(x[8:], center, var))
    whole = see(x, center, var)
    for got, want in zip(both.tensors, (*whole, *whole), strict=True):
        torch.testing.assert_close(got, want)


def test_first_centres_are_valid_tokens_and_include_the_outlier():
    x = torch.randn(200, 6)
    x[17] = 500.0
    valid = torch.ones(200, dtype=torch.bool)
    valid[:10] = False
    x[:10] = 1e4
    center, var = first_clusters(x, valid, 8, torch.Generator())
    distances = torch.cdist(center, x)
    assert distances.min(1).values.max() < 1e-2
    assert (distances.argmin(1) >= 10).all()
    assert 17 in distances.argmin(1)
    torch.testing.assert_close(var, x[valid].var(0, correction=0).expand(8, -1))


@pytest.mark.parametrize("tokens", [1, 3])
def test_fewer_tokens_than_clusters_still_start_them(tokens):
    center, var = first_clusters(torch.randn(tokens, 6), None, 8, torch.Generator())
    assert center.shape == var.shape == (8, 6)
    assert center.isfinite().all() and (var >= 0).all()


def test_an_overflow_in_the_first_batch_is_left_out():
    x = torch.randn(20, 6)
    x[3], x[4] = 1e25, torch.inf
    center, var = first_clusters(x, None, 8, torch.Generator())
    assert center.abs().max() < 10 and var.max() < 10


def test_no_valid_token_starts_nothing():
    assert first_clusters(torch.randn(3, 6), torch.zeros(3, dtype=torch.bool), 4, torch.Generator()) is None
    assert first_clusters(torch.full((3, 6), torch.nan), None, 4, torch.Generator()) is None


@pytest.mark.parametrize("padded", [False, True])
def test_the_sums_about_one_mean_are_those_of_one_cluster(padded):
    x = torch.randn(40, 6, dtype=torch.float64) * 3 + 5
    mean, var = torch.randn(1, 6, dtype=torch.float64), torch.rand(1, 6, dtype=torch.float64)
    x[3, 2], x[4, 0], x[5, 1] = torch.inf, torch.nan, 1e18
    valid = torch.rand(40) < 0.7 if padded else None
    sums = sum_about(x.clone(), mean, var, valid)
    left = [i for i in range(40) if i not in (3, 4, 5) and (valid is None or valid[i])]
    z = (x[left] - mean) / (var + VARIANCE_EPS).sqrt()
    assert sums.tokens.tolist() == [len(left)]
    torch.testing.assert_close(sums.z, z.sum(0, keepdim=True))
    torch.testing.assert_close(sums.z_squared, z.square().sum(0, keepdim=True))
