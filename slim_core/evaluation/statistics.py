# SPDX-License-Identifier: Apache-2.0
"""Means with their intervals, and tests of the difference of two models on the same questions.

The marks of a task are a string with "1" for each question that was answered rightly and "0" for each other one. What
is measured on a scale, such as a loss, is a sequence with a number for each item; items stand in the same order for
all models.

Sources: Wilson 1927; Zou, Huang and Zhang 2009 (a mean of shares, from their Wilson intervals); Efron 1979 (bootstrap
over items, paired where two models are compared); McNemar 1947, made exact; Holm 1979; Connor 1987 (power of paired
shares). No normal approximation: below a few hundred items its intervals are too narrow (Bowyer and others 2025,
arXiv 2503.01747).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np


Marks = Mapping[str, str]
# Of one task, or what was measured of each of its items.
Values = str | Sequence[float]
Outcomes = Mapping[str, Values]
Z = 1.959964  # half the width of a 95 % interval, in standard deviations
LEVEL = 0.05  # of significance, two-sided
POWER = 0.8  # power: how often an existing difference should be found
RESAMPLES = 4_000
REMEMBERED = 2_000  # questions whose draws are remembered, 64 MB at most for each set of tasks


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
        only_first: questions that only the first model answered correctly.
        only_second: questions that only the second model answered correctly.
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
    # Exactly 0 and 1 at the ends, where rounding leaves a little.
    return Score(share, middle - half if right else 0.0, middle + half if right < n else 1.0)


def score(marks: str) -> Score:
    """The score of a task."""
    return wilson(marks.count("1"), len(marks))


def mean_score(outcomes: Outcomes, tasks: Sequence[str]) -> Score:
    """The mean of the tasks' means, with a bootstrap over the items of each task."""
    means = _resampled([[_array(outcomes[task])] for task in tasks])[:, 0]
    return Score(_mean(outcomes, tasks), *_interval(means))


def mean_share(outcomes: Marks, tasks: Sequence[str]) -> Score:
    """The mean of the tasks' shares of right answers, with an interval recovered from Wilson's of each task.

    Unlike a bootstrap's, it has a width where all of a few questions were answered rightly, or all wrongly.
    """
    shares = [score(outcomes[task]) for task in tasks]
    mean, k = _mean(outcomes, tasks), len(shares)
    below = math.hypot(*(share.score - share.low for share in shares)) / k
    above = math.hypot(*(share.high - share.score for share in shares)) / k
    return Score(mean, max(0.0, mean - below), min(1.0, mean + above))


def difference(first: Outcomes, second: Outcomes, tasks: Sequence[str]) -> Score:
    """How much higher the first model is in the mean of the tasks' means, with a paired bootstrap over items."""
    means = _resampled([[_array(first[task]), _array(second[task])] for task in tasks])
    return Score(_mean(first, tasks) - _mean(second, tasks), *_interval(means[:, 0] - means[:, 1]))


def ratio(first: Outcomes, second: Outcomes, tasks: Sequence[str]) -> Score | None:
    """The mean of the tasks' means of the first model, divided by the second's; a paired bootstrap over items.

    Returns:
        None if the second's mean is 0 in any resample, so that there is no ratio.
    """
    means = _resampled([[_array(first[task]), _array(second[task])] for task in tasks])
    below = _mean(second, tasks)
    if below <= 0 or (means[:, 1] <= 0).any():
        return None
    return Score(_mean(first, tasks) / below, *_interval(means[:, 0] / means[:, 1]))


def mcnemar(first: Marks, second: Marks, tasks: Sequence[str]) -> McNemar:
    """McNemar's exact test over all questions of the tasks."""
    pairs = [pair for task in tasks for pair in zip(first[task], second[task], strict=True)]
    only_first, only_second = pairs.count(("1", "0")), pairs.count(("0", "1"))
    n = only_first + only_second
    # With integers: the powers of two exceed any float.
    tail = sum(math.comb(n, k) for k in range(min(only_first, only_second) + 1))
    return McNemar(only_first, only_second, min(1.0, 2 * tail / 2**n))


def holm(chances: Sequence[float]) -> list[float]:
    """p-values of several tests, adjusted so that all of them together have an error rate of 5 % (Holm 1979).

    Args:
        chances: m p-values.

    Returns:
        The adjusted ones in the same order: the k-th smallest, k from 0, times m - k, and never below a smaller one's.
    """
    adjusted, largest = [0.0] * len(chances), 0.0
    for k, index in enumerate(sorted(range(len(chances)), key=lambda i: chances[i])):
        largest = max(largest, min(1.0, (len(chances) - k) * chances[index]))
        adjusted[index] = largest
    return adjusted


def power(n: int, discordant: float, gap: float) -> float:
    """Power of McNemar's test at 5 % (Connor 1987, equation 2).

    Args:
        n: items that both models answered.
        discordant: share of them on which exactly one model is right, above 0.
        gap: the difference of the two shares of right answers, at most `discordant`.
    """
    spread = math.sqrt(max(discordant - gap * gap, 0.0))
    reach = abs(gap) * math.sqrt(n) - Z * math.sqrt(discordant)
    return float(reach > 0) if spread == 0 else 0.5 * math.erfc(-reach / spread / math.sqrt(2))


def detectable(n: int, discordant: float) -> float | None:
    """The smallest difference of two shares that n items detect with a `power` of 80 %.

    Args:
        n: items that both models answered.
        discordant: share of them on which exactly one model is right.

    Returns:
        0 to 1; None where even the largest difference that is possible, `discordant`, is found more rarely.
    """
    if discordant <= 0 or power(n, discordant, discordant) < POWER:
        return None
    low, high = 0.0, discordant
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if power(n, discordant, middle) >= POWER else (middle, high)
    return high


def auc(low: Sequence[float], high: Sequence[float]) -> float:
    """How often a value of `high` is greater than one of `low`, ties counted half: the area under the ROC curve."""
    ordered = np.sort(np.asarray(low))
    below, not_above = (np.searchsorted(ordered, high, side) for side in ("left", "right"))
    return float((below + not_above).mean() / 2 / len(ordered))


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's rank correlation of pairs, -1 to 1 (Spearman 1904); None where one of the two never varies."""
    ranks = [_ranks(np.asarray(values, dtype=np.float64)) for values in (first, second)]
    if any((each == each[0]).all() for each in ranks):
        return None
    return float(np.corrcoef(ranks)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    """The rank of each value, equal ones sharing the mean of theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[places]


def _array(values: Values) -> np.ndarray:
    """(n,) float64; of marks zeros and ones."""
    if isinstance(values, str):
        return np.frombuffer(values.encode(), dtype=np.uint8) - 48.0
    return np.asarray(values, dtype=np.float64)


def _mean(outcomes: Outcomes, tasks: Sequence[str]) -> float:
    """Of the tasks' means. Marks are counted, so that no rounding is in a share."""
    means = [
        values.count("1") / len(values) if isinstance(values, str) else math.fsum(values) / len(values)
        for values in (outcomes[task] for task in tasks)
    ]
    return sum(means) / len(tasks)


def _resampled(tasks: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """(RESAMPLES, models) mean scores over the tasks, where the models of a task share the drawn questions."""
    sizes = tuple(len(models[0]) for models in tasks)
    draw = _drawn_again if sum(sizes) <= REMEMBERED else _drawn
    means = [
        np.stack([drawn @ model / n for model in models], 1)
        for models, n, drawn in zip(tasks, sizes, draw(sizes), strict=True)
    ]
    return np.mean(means, axis=0)


def _drawn(sizes: tuple[int, ...]) -> Iterator[np.ndarray]:
    """For each task (RESAMPLES, n) int64, how often each of its n questions is drawn; always the same."""
    rng = np.random.default_rng(0)
    for n in sizes:
        yield rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES)


@lru_cache(maxsize=4)
def _drawn_again(sizes: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """What `_drawn` gives, remembered: a table has hundreds of intervals over the same questions."""
    return tuple(_drawn(sizes))


def _interval(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)
