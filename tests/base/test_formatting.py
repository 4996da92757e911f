# SPDX-License-Identifier: Apache-2.0
"""Numbers as words."""

import math

import pytest

from slim_core.base.formatting import count, counted, distance, likelihood, share, size, times


@pytest.mark.parametrize(
    ("amount", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2e9, "2.0 GB"), (5e12, "5,000.0 GB")]
)
def test_size(amount, text):
    assert size(amount) == text


@pytest.mark.parametrize(
    ("amount", "text"), [(950, "950"), (12_300, "12.3 thousand"), (4e6, "4.0 million"), (7e9, "7.0 billion")]
)
def test_count(amount, text):
    assert count(int(amount)) == text


def test_counted():
    words = [counted(amount, "cell") for amount in (0, 1, 2, 1200)]
    assert words == ["0 cells", "1 cell", "2 cells", "1,200 cells"]


@pytest.mark.parametrize(
    ("nats", "text"),
    [
        (0, "1.00"),
        (math.log(1.1), "1.10"),
        (math.log(35), "35.0"),
        (math.log(99.97), "100"),
        (math.log(350), "350"),
        (math.log(1234), "1,200"),
        (math.log(98_700), "99,000"),
        (math.log(1e5), "10⁵"),
        (14, "10⁶"),
        (14 * math.log(10), "10¹⁴"),
        (5000, "10²¹⁷¹"),
    ],
)
def test_times(nats, text):
    assert times(nats) == text


def test_likelihood():
    assert likelihood(0.0) == "exactly as likely"
    assert likelihood(0.001) == likelihood(-0.0049) == "about as likely"
    assert likelihood(0.006) == "1.01 times less likely"
    assert likelihood(math.log(2)) == "2.0 times less likely"
    assert likelihood(-math.log(2)) == "2.0 times more likely"


def test_distances():
    assert [distance(d) for d in (0.756, -0.111, -0.001, -1.0)] == ["0.76", "−0.11", "0.00", "−1.00"]


def test_shares_are_never_rounded_to_all_or_nothing():
    assert [share(x) for x in (0, 0.004, 0.5, 0.996, 1)] == ["0%", "under 1%", "50%", "over 99%", "100%"]
