# SPDX-License-Identifier: Apache-2.0
"""Shares with their intervals, and what two models' answers to the same questions say about their difference.

The marks of a task are a string with "1" for each question that was answered rightly and "0" for each other one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np


Marks = Mapping[str, str]
Z = 1.959964  # half the width of a 95 % interval, in standard deviations
RESAMPLES = 4_000


class Score(NamedTuple):
    """A share of right answers, or a difference of two, with its 95 % interval.

    Attributes:
        score: 0 to 1.
        low, high: the interval.
    """

    score: float
    low: float
    high: float


class McNemar(NamedTuple):
    """The exact test of two models on the same questions.

    Attributes:
        only_first: questions that the first model alone answered rightly.
        only_second: those that the second alone did.
        p: how likely such a difference, or a greater one, is by chance; two-sided.
    """

    only_first: int
    only_second: int
    p: float


def wilson(right: int, n: int, z: float = Z) -> Score:
    """The share of right answers and Wilson's score interval, which also holds near 0 and 1.

    Args:
        right: right answers.
        n: all answers.
        z: half the interval's width in standard deviations; 95 % by default.
    """
    share = right / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Score(share, max(0.0, middle - half), min(1.0, middle + half))


def score(marks: str) -> Score:
    """The score of a task."""
    return wilson(marks.count("1"), len(marks))


def mean_score(marks: Marks, tasks: Sequence[str]) -> Score:
    """The mean of the tasks' scores, with a bootstrap over the questions of each task."""
    means = _resampled([[_array(marks[task])] for task in tasks])[:, 0]
    return Score(sum(score(marks[task]).score for task in tasks) / len(tasks), *_interval(means))


def difference(first: Marks, second: Marks, tasks: Sequence[str]) -> Score:
    """How much better the first model is, by the mean of the tasks' scores, with a paired bootstrap over questions."""
    means = _resampled([[_array(first[task]), _array(second[task])] for task in tasks])
    found = sum(score(first[task]).score - score(second[task]).score for task in tasks) / len(tasks)
    return Score(found, *_interval(means[:, 0] - means[:, 1]))


def mcnemar(first: Marks, second: Marks, tasks: Sequence[str]) -> McNemar:
    """McNemar's exact test over all questions of the tasks."""
    pairs = [pair for task in tasks for pair in zip(first[task], second[task], strict=True)]
    only_first, only_second = pairs.count(("1", "0")), pairs.count(("0", "1"))
    n = only_first + only_second
    # In whole numbers: the powers of two are beyond any float.
    tail = sum(math.comb(n, k) for k in range(min(only_first, only_second) + 1))
    return McNemar(only_first, only_second, min(1.0, 2 * tail / 2**n))


def auc(low: Sequence[float], high: Sequence[float]) -> float:
    """How often a value of `high` is greater than one of `low`, ties counted half: the area under the ROC curve."""
    ordered = np.sort(np.asarray(low))
    below, not_above = (np.searchsorted(ordered, high, side) for side in ("left", "right"))
    return float((below + not_above).mean() / 2 / len(ordered))


def _array(marks: str) -> np.ndarray:
    """(n,) float64 zeros and ones."""
    return np.frombuffer(marks.encode(), dtype=np.uint8) - 48.0


def _resampled(tasks: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """(RESAMPLES, models) mean scores over the tasks, where the models of a task share the drawn questions."""
    rng = np.random.default_rng(0)
    means = []
    for models in tasks:
        n = len(models[0])
        # How often each question is drawn.
        drawn = rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
        means.append(np.stack([drawn @ model / n for model in models], axis=1))
    return np.mean(means, axis=0)


def _interval(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)
