# SPDX-License-Identifier: Apache-2.0
"""Intervals and tests against textbooks and slow formulas."""

from __future__ import annotations

from itertools import product
from math import comb
from random import Random

import numpy as np
import pytest

from slim_core.evaluation.statistics import (
    auc,
    detectable,
    difference,
    holm,
    mcnemar,
    mean_score,
    mean_share,
    power,
    rank_correlation,
    ratio,
    score,
    wilson,
)


def marks(rng: Random, n: int, share: float) -> str:
    return "".join("1" if rng.random() < share else "0" for _ in range(n))


def test_wilson_interval_against_the_textbook():
    # Newcombe 1998, table I: 81 of 263 and 0 of 20.
    assert wilson(81, 263) == pytest.approx((0.3080, 0.2553, 0.3662), abs=1e-4)
    assert wilson(0, 20) == pytest.approx((0.0, 0.0, 0.1611), abs=1e-4)
    for n in range(1, 300):
        assert wilson(0, n).low == 0.0 and wilson(n, n).high == 1.0
    assert wilson(81, 263, z=3).low < wilson(81, 263).low
    assert score("0110") == wilson(2, 4)


@pytest.mark.parametrize(("first", "second"), [(0, 0), (1, 0), (3, 3), (2, 9), (12, 1)])
def test_mcnemar_against_every_way_the_coins_can_fall(first, second):
    n = first + second
    one = {"a": "1" * first + "0" * second + "11", "b": "000"}
    other = {"a": "0" * first + "1" * second + "11", "b": "000"}
    # All falls that are at most as likely as this one or further out on either side.
    extreme = [k for k in range(n + 1) if abs(2 * k - n) >= abs(first - second)]
    p = sum(comb(n, k) for k in extreme) / 2**n
    assert mcnemar(one, other, ("a", "b")) == pytest.approx((first, second, p))
    assert mcnemar(other, one, ("a", "b")).p == pytest.approx(p)


def test_mcnemar_of_many_questions_is_a_number():
    one, other = {"a": "1" * 3000}, {"a": "0" * 3000}
    assert mcnemar(one, other, ("a",)).p == 0.0


def test_bootstrap_of_a_mean_is_as_wide_as_the_exact_one():
    rng = Random(0)
    drawn = {"a": marks(rng, 600, 0.9), "b": marks(rng, 300, 0.5)}
    shares = {task: text.count("1") / len(text) for task, text in drawn.items()}
    error = sum(s * (1 - s) / len(drawn[task]) for task, s in shares.items()) ** 0.5 / 2
    mean = mean_score(drawn, ("a", "b"))
    assert mean.score == pytest.approx(sum(shares.values()) / 2)
    assert mean.low == pytest.approx(mean.score - 1.96 * error, abs=2e-3)
    assert mean.high == pytest.approx(mean.score + 1.96 * error, abs=2e-3)


def test_a_mean_of_shares_has_an_interval_made_of_wilsons():
    assert mean_share({"a": "1101"}, ("a",)) == pytest.approx(wilson(3, 4))
    # A bootstrap would have no width here.
    mean = mean_share({"a": "11111", "b": "11111"}, ("a", "b"))
    assert mean.high == 1.0 and mean.low == pytest.approx(1 - (1 - wilson(5, 5).low) / 2**0.5)
    rng = Random(4)
    drawn = {"a": marks(rng, 600, 0.9), "b": marks(rng, 300, 0.5)}
    assert mean_share(drawn, ("a", "b")) == pytest.approx(mean_score(drawn, ("a", "b")), abs=3e-3)


def test_such_an_interval_contains_the_truth_nineteen_times_of_twenty():
    rng, inside = Random(5), 0
    for _ in range(1000):
        mean = mean_share({"a": marks(rng, 20, 0.95), "b": marks(rng, 10, 0.4)}, ("a", "b"))
        inside += mean.low <= 0.675 <= mean.high
    assert 930 <= inside <= 985


def test_paired_bootstrap_knows_that_the_questions_are_the_same():
    rng = Random(1)
    one = marks(rng, 500, 0.7)
    other = "".join(c if rng.random() < 0.95 else "0" for c in one)
    gaps = [int(a) - int(b) for a, b in zip(one, other, strict=True)]
    gap = sum(gaps) / 500
    error = (sum((g - gap) ** 2 for g in gaps) / 500 / 500) ** 0.5
    interval = difference({"a": one}, {"a": other}, ("a",))
    assert interval == pytest.approx((gap, gap - 1.96 * error, gap + 1.96 * error), abs=3e-3)
    assert difference({"a": one}, {"a": one}, ("a",)) == (0.0, 0.0, 0.0)
    assert difference({"a": other}, {"a": one}, ("a",)).score == -interval.score


def test_auc_against_all_pairs():
    rng = Random(2)
    low, high = ([round(rng.random() + shift, 1) for _ in range(n)] for n, shift in ((40, 0.0), (25, 0.4)))
    pairs = [1.0 if h > v else 0.5 if h == v else 0.0 for v, h in product(low, high)]
    assert auc(low, high) == pytest.approx(sum(pairs) / len(pairs))
    assert auc([0, 1], [2, 3]) == 1.0


def test_what_is_measured_on_a_scale_has_a_mean_too():
    rng = np.random.default_rng(3)
    losses = {"a": rng.normal(2.0, 0.5, 400).tolist(), "b": rng.normal(4.0, 1.0, 100).tolist()}
    mean = mean_score(losses, ("a", "b"))
    error = (np.var(losses["a"]) / 400 + np.var(losses["b"]) / 100) ** 0.5 / 2
    assert mean.score == pytest.approx((np.mean(losses["a"]) + np.mean(losses["b"])) / 2)
    assert (mean.low, mean.high) == pytest.approx((mean.score - 1.96 * error, mean.score + 1.96 * error), abs=5e-3)
    higher = {task: [value + 0.25 for value in values] for task, values in losses.items()}
    assert difference(higher, losses, ("a", "b")) == pytest.approx((0.25, 0.25, 0.25))


def test_a_ratio_with_the_delta_method():
    rng = Random(4)
    before = marks(rng, 800, 0.9)
    after = "".join(c if rng.random() < 0.9 else "0" for c in before)
    x, y = (np.array([int(c) for c in text]) for text in (after, before))
    share = x.mean() / y.mean()
    error = np.std(x - share * y) / y.mean() / 800**0.5
    interval = ratio({"a": after}, {"a": before}, ("a",))
    assert interval == pytest.approx((share, share - 1.96 * error, share + 1.96 * error), abs=3e-3)
    assert ratio({"a": before}, {"a": before}, ("a",)) == (1.0, 1.0, 1.0)
    assert ratio({"a": "11"}, {"a": "00"}, ("a",)) is None
    assert ratio({"a": "11"}, {"a": "01"}, ("a",)) is None  # a resample may hold the wrong answer twice


def test_holm_against_a_worked_example():
    # Holm 1979: the smallest of three counts three times, the next twice, the largest once, and none falls below.
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


@pytest.mark.parametrize(("n", "discordant", "gap"), [(300, 0.2, 0.08), (600, 0.1, 0.03), (1000, 0.3, 0.05)])
def test_power_against_simulated_questions(n, discordant, gap):
    rng = np.random.default_rng(5)
    shares = [(discordant + gap) / 2, (discordant - gap) / 2, 1 - discordant]
    only_first, only_second, _ = rng.multinomial(n, shares, size=20_000).T
    simulated = np.mean(abs(only_first - only_second) > 1.959964 * np.sqrt(only_first + only_second))
    assert power(n, discordant, gap) == pytest.approx(simulated, abs=0.02)


def test_what_so_many_questions_could_have_shown():
    gap = detectable(600, 0.1)
    assert power(600, 0.1, gap) == pytest.approx(0.8, abs=1e-9)
    # Connor 1987 in closed form: n = (z sqrt(d) + z' sqrt(d - gap^2))^2 / gap^2.
    assert ((1.959964 * 0.1**0.5 + 0.841621 * (0.1 - gap**2) ** 0.5) / gap) ** 2 == pytest.approx(600, rel=1e-4)
    assert detectable(2400, 0.1) < gap
    assert detectable(10, 0.1) is None and detectable(600, 0.0) is None


def test_rank_correlation_against_the_formula_of_differences():
    rng = Random(3)
    first, second = ([rng.random() for _ in range(9)] for _ in range(2))
    ranks = [[sorted(values).index(value) for value in values] for values in (first, second)]
    squares = sum((a - b) ** 2 for a, b in zip(*ranks, strict=True))
    assert rank_correlation(first, second) == pytest.approx(1 - 6 * squares / (9 * (81 - 1)))
    # Equal values share a rank: 1.5, 1.5 and 3 against 1, 2 and 3.
    assert rank_correlation([0, 0, 1], [1, 2, 3]) == pytest.approx(0.75**0.5)
    assert rank_correlation([1, 1, 1], [1, 2, 3]) is None
