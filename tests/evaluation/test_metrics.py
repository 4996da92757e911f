# SPDX-License-Identifier: Apache-2.0
"""Definitions with right values that were worked out by hand."""

from __future__ import annotations

import pytest

from slim_core.evaluation.metrics import (
    average_accuracy,
    backward_transfer,
    comparison_sentence,
    comparisons,
    forgetting,
    router_auc,
    spread,
    standings,
)
from slim_core.evaluation.statistics import detectable


# Rows are stages, the base first; columns are the tasks in the order in which they were trained.
STAGES = [[0.2, 0.3, 0.1], [0.9, 0.4, 0.2], [0.7, 0.8, 0.3], [0.6, 0.75, 0.85]]


def test_stages():
    assert average_accuracy(STAGES) == pytest.approx((0.6 + 0.75 + 0.85) / 3)
    assert backward_transfer(STAGES) == pytest.approx(((0.6 - 0.9) + (0.75 - 0.8)) / 2)
    assert forgetting(STAGES) == pytest.approx(((0.9 - 0.6) + (0.8 - 0.75)) / 2)
    # A later stage helped: transfer is positive, and what was never lost is negative forgetting.
    helped = [[0.0, 0.0], [0.5, 0.0], [0.6, 0.9]]
    assert (backward_transfer(helped), forgetting(helped)) == pytest.approx((0.1, -0.1))
    assert backward_transfer([[0.1], [0.9]]) is None and forgetting([[0.1], [0.9]]) is None
    # The best stage may lie between: forgetting counts from there, transfer from the task's own stage.
    later = [[0, 0, 0], [0.5, 0, 0], [0.8, 0.7, 0], [0.4, 0.7, 0.9]]
    assert forgetting(later) == pytest.approx((0.4 + 0.0) / 2)
    assert backward_transfer(later) == pytest.approx((-0.1 + 0.0) / 2)
    with pytest.raises(ValueError, match="T \\+ 1 rows of T"):
        average_accuracy([[0.1, 0.2]])


def test_standings():
    marks = {
        "base": {"a": "1111", "b": "1100"},
        "lora": {"a": "1000", "b": "1100"},
        "slim": {"a": "1111", "b": "1110"},
    }
    base, lora, slim = standings(marks, ("a", "b"))
    assert (base.mean.score, base.change, base.retention) == (0.75, None, None)
    assert lora.change.score == pytest.approx(0.375 - 0.75) and lora.retention.score == pytest.approx(0.5)
    assert slim.change.score == pytest.approx(0.125) and slim.retention.score == pytest.approx(0.875 / 0.75)
    (alone,) = standings({"lora": marks["lora"]}, ("a",))
    assert (alone.mean.score, alone.change) == (0.25, None)


def test_what_may_be_said_of_two():
    many = {"base": {"a": "1" * 300}, "lora": {"a": "1" * 260 + "0" * 40}, "slim": {"a": "0" * 3 + "1" * 297}}
    by_pair = {(c.first, c.second): c for c in comparisons(many, ("a",))}
    lost = by_pair["base", "lora"]
    assert lost.shown and (lost.test.only_first, lost.test.only_second, lost.n) == (40, 0, 300)
    assert comparison_sentence(lost, "Base", "LoRA").startswith("Base solves more than LoRA: 13.3 points, p = ")
    kept = by_pair["base", "slim"]
    # The exact p of three against none is 0.25, and no larger one stands before it in Holm's order.
    assert not kept.shown and kept.test.p == 0.25 and kept.p == 0.25
    assert kept.detectable is None and detectable(300, 0.01) is None
    sentence = comparison_sentence(kept, "Base", "SLIM")
    assert sentence.endswith("is shown; their marks differ on 3 of 300 questions, too few to show any.")
    (same,) = comparisons({"a": {"t": "1100"}, "b": {"t": "1100"}}, ("t",))
    assert comparison_sentence(same, "A", "B").endswith(": both have the same marks on all 4 questions.")
    (one,) = comparisons({"a": {"t": "1"}, "b": {"t": "1"}}, ("t",))
    assert comparison_sentence(one, "A", "B").endswith(": both have the same marks on the one question.")
    mixed = {"a": {"t": "10" * 20 + "1" * 60}, "b": {"t": "01" * 20 + "1" * 60}}
    (even,) = comparisons(mixed, ("t",))
    assert even.p == 1.0 and even.detectable == pytest.approx(0.1751, abs=1e-4)
    sentence = comparison_sentence(even, "A", "B")
    assert sentence == (
        "No difference between A and B is shown (p = 1); 100 questions show one of 17.5 points or more four times in "
        "five, before Holm's correction."
    )


def test_tasks_of_different_sizes_that_disagree_show_nothing():
    marks = {
        "a": {"large": "1" * 400 + "0" * 1000, "small": "1" * 80 + "0" * 20},
        "b": {"large": "1" * 460 + "0" * 940, "small": "1" * 50 + "0" * 50},
    }
    (pair,) = comparisons(marks, ("large", "small"))
    # B is right on more questions, A on average over the tasks.
    assert (pair.test.only_first, pair.test.only_second) == (30, 60) and pair.p < 0.01 and pair.gap.score > 0.1
    assert not pair.shown
    assert comparison_sentence(pair, "A", "B") == (
        "No difference between A and B is claimed: one is better on average over the tasks, the other is right on "
        "more questions."
    )
    (alone,) = comparisons(marks, ("large",))
    assert alone.shown and comparison_sentence(alone, "A", "B").startswith("B solves more than A: 4.3 points")


def test_the_router_by_block():
    trained, general = [[0.1, 0.5], [0.2, 0.5]], [[0.9, 0.5], [0.15, 0.5]]
    blocks, all_of_it = router_auc(trained, general)
    # Of four pairs in the first block one is the wrong way round; in the second all are ties.
    assert blocks == [0.75, 0.5] and all_of_it == 0.75


def test_seeds():
    scores = spread([0.9, 0.8, 0.85])
    assert (scores.seeds, scores.low, scores.high) == (3, 0.8, 0.9)
    assert (scores.mean, scores.deviation) == pytest.approx((0.85, 0.05))
    assert spread([0.5]).deviation is None
