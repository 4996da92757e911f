# SPDX-License-Identifier: Apache-2.0
"""Metrics of learning and forgetting, each with a definition and a source.

R[i][j] is the score on task j after stage i of training; stage 0 is the base.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean, stdev

from ..base.formatting import counted
from .statistics import LEVEL, Marks, McNemar, Score, auc, detectable, difference, holm, mcnemar, mean_share, ratio


SOLVES = "solves more than"


@dataclass(frozen=True)
class Standing:
    """One variant's scores in one kind of tasks, all scored in the same way.

    Attributes:
        variant: its name.
        mean: of the tasks' mean scores, as SLIM's tables and GEM's average accuracy have it (Lopez-Paz and Ranzato
            2017, arXiv 1706.08840).
        change: this mean minus the base's, paired over items. For general tasks its negative is the drop, TRACE's
            general ability delta (Wang and others 2023, arXiv 2310.06762).
        retention: this mean divided by the base's; None for the base, and where the base solves nothing.
    """

    variant: str
    mean: Score
    change: Score | None
    retention: Score | None


def standings(outcomes: Mapping[str, Marks], tasks: Sequence[str], base: str = "base") -> list[Standing]:
    """The standings of all variants.

    Args:
        outcomes: by variant.
        tasks: that are averaged, each with the same weight.
        base: the variant that all others are compared with.
    """
    result = []
    for variant, marks in outcomes.items():
        compared = variant != base and base in outcomes
        result.append(
            Standing(
                variant,
                mean_share(marks, tasks),
                difference(marks, outcomes[base], tasks) if compared else None,
                ratio(marks, outcomes[base], tasks) if compared else None,
            )
        )
    return result


@dataclass(frozen=True)
class Comparison:
    """Two variants on the same questions.

    Attributes:
        first, second: their names.
        gap: the first one's mean minus the second one's, with a paired bootstrap interval.
        test: McNemar's, over all questions of the tasks.
        p: its p-value after Holm's correction for all pairs that were compared together.
        n: questions.
        detectable: the smallest difference in the share of right answers that so many questions show four times in
            five, given how often the two disagree; None where they show none.
    """

    first: str
    second: str
    gap: Score
    test: McNemar
    p: float
    n: int
    detectable: float | None

    @property
    def shown(self) -> bool:
        """Whether there is a difference: significant at 5 % after the correction, and in the direction of the gap.

        The test counts questions and the gap is a mean over tasks, so that tasks of very different sizes may disagree.
        """
        return self.p < LEVEL and (self.test.only_first - self.test.only_second) * self.gap.score > 0


def comparisons(
    marks: Mapping[str, Mapping[str, str]], tasks: Sequence[str], pairs: Sequence[tuple[str, str]] | None = None
) -> list[Comparison]:
    """Pairs of variants on the same questions.

    Args:
        marks: by variant and task.
        tasks: that are compared together.
        pairs: which; None for all.
    """
    pairs = list(combinations(marks, 2)) if pairs is None else pairs
    tests = [mcnemar(marks[first], marks[second], tasks) for first, second in pairs]
    adjusted = holm([test.p for test in tests])
    n = sum(len(next(iter(marks.values()))[task]) for task in tasks) if marks else 0
    return [
        Comparison(
            first,
            second,
            difference(marks[first], marks[second], tasks),
            test,
            p,
            n,
            detectable(n, (test.only_first + test.only_second) / n),
        )
        for (first, second), test, p in zip(pairs, tests, adjusted, strict=True)
    ]


def comparison_sentence(comparison: Comparison, first: str, second: str, verb: str = SOLVES) -> str:
    """A sentence that compares two variants; differences that are not significant are not claimed.

    Args:
        comparison: the comparison.
        first, second: their names for people.
        verb: what a higher share means.
    """
    if comparison.shown:
        better, worse = (first, second) if comparison.gap.score > 0 else (second, first)
        return f"{better} {verb} {worse}: {_points(abs(comparison.gap.score))} points, p = {comparison.p:.2g}."
    if comparison.p < LEVEL:
        return (
            f"No difference between {first} and {second} is claimed: one is better on average over the tasks, the "
            "other is right on more questions."
        )
    if comparison.detectable is None:
        different = comparison.test.only_first + comparison.test.only_second
        if not different:
            them = f"all {comparison.n:,} questions" if comparison.n > 1 else "the one question"
            same = f"both have the same marks on {them}"
            return f"No difference between {first} and {second}: {same}."
        return (
            f"No difference between {first} and {second} is shown; their marks differ on {different:,} of "
            f"{counted(comparison.n, 'question')}, too few to show any."
        )
    return (
        f"No difference between {first} and {second} is shown (p = {comparison.p:.2g}); {comparison.n:,} questions "
        f"show one of {_points(comparison.detectable)} points or more four times in five, before Holm's correction."
    )


def _points(share: float) -> str:
    return f"{100 * share:.1f}"


# -- several stages ----------------------------------------------------------------------------------------------


def average_accuracy(scores: Sequence[Sequence[float]]) -> float:
    """mean_j R[T][j]: accuracy on all tasks at the end (GEM's ACC, TRACE's overall performance).

    Args:
        scores: R, T + 1 rows of T scores.
    """
    return fmean(_square(scores)[-1])


def backward_transfer(scores: Sequence[Sequence[float]]) -> float | None:
    """1 / (T - 1) sum_{j < T} (R[T][j] - R[j][j]), by GEM's definition: what later stages did to earlier tasks.

    TRACE divides by T and sums j = T too, whose difference is 0.

    Args:
        scores: R, T + 1 rows of T scores.

    Returns:
        None for a single stage.
    """
    table = _square(scores)
    stages = len(table) - 1
    if stages < 2:
        return None
    return sum(table[-1][j] - table[j + 1][j] for j in range(stages - 1)) / (stages - 1)


def forgetting(scores: Sequence[Sequence[float]]) -> float | None:
    """1 / (T - 1) sum_{j < T} (max_{1 <= l < T} R[l][j] - R[T][j]) (Chaudhry and others 2018, arXiv 1801.10112).

    Args:
        scores: R, T + 1 rows of T scores.

    Returns:
        None for a single stage.
    """
    table = _square(scores)
    stages = len(table) - 1
    if stages < 2:
        return None
    best = [max(table[stage][j] for stage in range(1, stages)) for j in range(stages - 1)]
    return sum(high - table[-1][j] for j, high in enumerate(best)) / (stages - 1)


def _square(scores: Sequence[Sequence[float]]) -> Sequence[Sequence[float]]:
    tasks = len(scores) - 1
    if tasks < 1 or any(len(row) != tasks for row in scores):
        raise ValueError(f"a table of T stages has T + 1 rows of T scores, not {[len(row) for row in scores]}")
    return scores


# -- routing, seeds ----------------------------------------------------------------------------------------------


def router_auc(trained: Sequence[Sequence[float]], others: Sequence[Sequence[float]]) -> tuple[list[float], float]:
    """How well the shares past LoRA separate trained prompts from others: areas under ROC curves.

    1 is perfect, 0.5 is chance. Ties count half (Hanley and McNeil 1982).

    Args:
        trained: for each prompt of a trained task the share past LoRA in each block.
        others: the same for prompts unlike the training data.

    Returns:
        The area for each block from the first to the last, and that of the prompts' means over blocks.
    """
    blocks = [auc(low, high) for low, high in zip(zip(*trained, strict=True), zip(*others, strict=True), strict=True)]
    return blocks, auc([fmean(shares) for shares in trained], [fmean(shares) for shares in others])


@dataclass(frozen=True)
class Spread:
    """The same thing from several training seeds.

    Attributes:
        seeds: how many.
        mean, low, high: of the seeds' values.
        deviation: sample standard deviation; None for a single seed.
    """

    seeds: int
    mean: float
    low: float
    high: float
    deviation: float | None


def spread(values: Sequence[float]) -> Spread:
    """Sum up one value from each seed."""
    return Spread(len(values), fmean(values), min(values), max(values), stdev(values) if len(values) > 1 else None)
