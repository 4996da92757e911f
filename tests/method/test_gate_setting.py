# SPDX-License-Identifier: Apache-2.0
"""What can be asked of a gate, and which quantiles an adapter knows."""

from __future__ import annotations

import pytest

from slim_core import SlimConfig
from slim_core.method import AS_TRAINED, LEVELS, GateSetting, check_quantile, stored_quantiles


def test_nothing_asked_is_as_trained():
    assert GateSetting() == AS_TRAINED == GateSetting(None, None)
    assert len({AS_TRAINED, GateSetting(0.0), GateSetting(0), GateSetting(quantile=0.5)}) == 3


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"strength": -1}, "`strength` must be 0 or more and below 1e+38, not -1."),
        ({"strength": 1e39}, "`strength` must be 0 or more and below 1e+38, not 1e+39."),
        ({"strength": float("inf")}, "`strength` must be a finite number, not inf."),
        ({"quantile": 0}, "`quantile` must be above 0 and below 1, not 0."),
        ({"quantile": float("nan")}, "`quantile` must be a finite number, not nan."),
        ({"quantile": "0.9"}, "`quantile` must be a finite number, not '0.9'."),
    ],
    ids=str,
)
def test_what_cannot_be_asked_is_a_sentence(wrong, sentence):
    with pytest.raises(ValueError) as refused:
        GateSetting(**wrong)
    assert str(refused.value) == sentence


def test_what_an_adapter_stores():
    assert stored_quantiles(SlimConfig()) == stored_quantiles(SlimConfig(yield_mode="calibrated")) == LEVELS
    assert stored_quantiles(SlimConfig(format_version=1, yield_quantile=0.9)) == (0.9,)
    assert stored_quantiles(SlimConfig(yield_mode="paper")) == ()
    assert stored_quantiles(SlimConfig(num_experts=1, num_identity=0, top_k=1)) == ()


@pytest.mark.parametrize(
    ("quantile", "stored", "sentence"),
    [
        (0.49, LEVELS, "The quantile is 0.49; it must be from 0.5 to 0.999, which mine stores."),
        (0.9999, LEVELS, "The quantile is 0.9999; it must be from 0.5 to 0.999, which mine stores."),
        (0.5, (0.9,), "The quantile is 0.5; mine stores the distance of 0.9 alone."),
        (0.5, (), "The quantile is 0.5; mine stores no training distances, so it has no effect."),
    ],
)
def test_a_quantile_that_is_not_known_is_a_sentence(quantile, stored, sentence):
    with pytest.raises(ValueError) as refused:
        check_quantile(quantile, stored, "mine")
    assert str(refused.value) == sentence


def test_a_quantile_between_two_is_known():
    for quantile in (None, *LEVELS, 0.6):
        check_quantile(quantile, LEVELS)
    check_quantile(None, ())
    check_quantile(0.9, (0.9,))
