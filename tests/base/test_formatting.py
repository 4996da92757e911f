# SPDX-License-Identifier: Apache-2.0
"""Numbers as words."""

import math

import pytest

from slim_core.base.formatting import count, likelihood, size, times


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


@pytest.mark.parametrize(
    ("nats", "text"),
    [(math.log(1.1), "1.10"), (math.log(35), "35.0"), (math.log(350), "350"), (14, "10^6"), (5000, "10^2171")],
)
def test_times(nats, text):
    assert times(nats) == text


def test_likelihood():
    assert likelihood(0.0) == "exactly as likely"
    assert likelihood(math.log(2)) == "2.0 times less likely"
    assert likelihood(-math.log(2)) == "2.0 times more likely"
