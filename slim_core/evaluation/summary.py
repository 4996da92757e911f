# SPDX-License-Identifier: Apache-2.0
"""The summary of an evaluation: scores, what was learned and forgotten, and significant differences.

What is scored in different ways never comes into one table or one mean.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import get_args

from .metrics import Comparison, Spread, Standing, comparisons, router_auc, spread, standings
from .solving import Sample
from .statistics import Score, difference, mean_score, score
from .tasks import Kind, Scoring, Task


BASE = "base"
# An adapter's name with the seed of its training: slim@1.
SEEDED = re.compile(r"(?P<method>.+)@(?P<seed>\d+)(?P<rest>.*)")


@dataclass(frozen=True)
class TaskScores:
    """One task.

    Attributes:
        name, title, kind, metric: of the task.
        n: items that count; those with an error do not.
        left_out: items with an error.
        chance: score of guessing; None where nothing can be guessed.
        scores: of each variant. Of marks with Wilson's interval, of a loss with a bootstrap.
        changes: of a loss, its difference to the base's; paired.
        unforgettable: of a general task, whether the base is not shown to be better than guessing, or solves nothing,
            so that there is nothing to forget.
    """

    name: str
    title: str
    kind: Kind
    metric: str
    n: int
    left_out: int
    chance: float | None
    scores: dict[str, Score]
    changes: dict[str, Score] = field(default_factory=dict)
    unforgettable: bool = False


@dataclass(frozen=True)
class KindSummary:
    """All tasks of a kind with the same scoring.

    Attributes:
        tasks: their names.
        standings: of the variants; none of a loss.
        comparisons: of every two variants; none of a loss.
        kl: KL(base || variant) in nats per token, mean over the tasks, by variant.
    """

    tasks: tuple[str, ...]
    standings: tuple[Standing, ...]
    comparisons: tuple[Comparison, ...]
    kl: dict[str, Score]


@dataclass(frozen=True)
class Group:
    """Everything with the same scoring.

    Attributes:
        scoring: the way.
        tasks: one by one.
        kinds: what was trained, and what was known before.
        auc: by variant with a gate, how well its shares past LoRA tell general from trained prompts: for each block,
            and all blocks together.
        seeds: by method and kind, the spread of several training seeds.
    """

    scoring: Scoring
    tasks: tuple[TaskScores, ...]
    kinds: dict[str, KindSummary]
    auc: dict[str, tuple[list[float], float]]
    seeds: dict[str, dict[str, Spread]]


# Which variants are compared; None for every two.
Pairs = Sequence[tuple[str, str]] | None


def summarise(
    tasks: Sequence[Task], samples: Mapping[str, Sequence[Sample]], columns: Sequence[str], pairs: Pairs = None
) -> list[Group]:
    """Sum up an evaluation.

    Args:
        tasks: what was solved.
        samples: of each.
        columns: names of the variants.
        pairs: which of them are compared.
    """
    groups = []
    for scoring in get_args(Scoring):
        scored = [task for task in tasks if task.scoring == scoring]
        if scored:
            groups.append(_group(scoring, scored, samples, columns, pairs))
    return groups


def seeded_method(column: str) -> str | None:
    """What several seeds have in common: a column's name without its seed; None where it has none."""
    match = SEEDED.fullmatch(column)
    return None if match is None else match["method"] + match["rest"]


def solved_samples(samples: Sequence[Sample]) -> list[Sample]:
    """The samples without an error."""
    return [sample for sample in samples if "error" not in sample]


def _column(samples: Sequence[Sample], column: str, key: str) -> list[float]:
    return [sample["answers"][column][key] for sample in solved_samples(samples)]


def marks_of(samples: Sequence[Sample], column: str) -> str:
    """A "1" for each item that counts, and a "0" for each other."""
    return "".join("1" if mark else "0" for mark in _column(samples, column, "mark"))


def _group(
    scoring: Scoring,
    tasks: Sequence[Task],
    samples: Mapping[str, Sequence[Sample]],
    columns: Sequence[str],
    pairs: Pairs,
) -> Group:
    kinds = {}
    for kind in get_args(Kind):
        names = [task.name for task in tasks if task.kind == kind]
        if names:
            kinds[kind] = _kind(scoring, names, samples, columns, pairs)
    scores = tuple(_scores(task, samples[task.name], columns) for task in tasks)
    return Group(scoring, scores, kinds, _router(tasks, samples, columns), _seeds(kinds))


def _scores(task: Task, samples: Sequence[Sample], columns: Sequence[str]) -> TaskScores:
    n = len(solved_samples(samples))
    changes = {}
    if task.scoring == "loss":
        losses = {column: {task.name: _column(samples, column, "loss")} for column in columns}
        scores = {column: mean_score(losses[column], [task.name]) for column in columns}
        changes = {c: difference(losses[c], losses[BASE], [task.name]) for c in columns if c != BASE}
    else:
        scores = {column: score(marks_of(samples, column)) for column in columns}
    known = task.kind == "general" and task.scoring not in ("loss", "captured")
    unforgettable = known and BASE in scores and scores[BASE].low <= (task.chance or 0.0)
    return TaskScores(
        task.name,
        task.title,
        task.kind,
        task.metric,
        n,
        len(samples) - n,
        task.chance,
        scores,
        changes,
        unforgettable,
    )


def _kind(
    scoring: Scoring,
    tasks: Sequence[str],
    samples: Mapping[str, Sequence[Sample]],
    columns: Sequence[str],
    pairs: Pairs,
) -> KindSummary:
    kl = {}
    for column in columns:
        values = {
            task: [s["answers"][column]["kl"] for s in solved_samples(samples[task]) if "kl" in s["answers"][column]]
            for task in tasks
        }
        if column != BASE and all(values.values()):
            kl[column] = mean_score(values, tasks)
    if scoring == "loss":
        return KindSummary(tuple(tasks), (), (), kl)
    marks = {column: {task: marks_of(samples[task], column) for task in tasks} for column in columns}
    compared = tuple(comparisons(marks, tasks, pairs))
    return KindSummary(tuple(tasks), tuple(standings(marks, tasks, BASE)), compared, kl)


def _router(
    tasks: Sequence[Task], samples: Mapping[str, Sequence[Sample]], columns: Sequence[str]
) -> dict[str, tuple[list[float], float]]:
    aucs = {}
    for column in columns:
        shares: dict[str, list[list[float]]] = {"downstream": [], "general": []}
        for task in tasks:
            answers = [sample["answers"][column] for sample in solved_samples(samples[task.name])]
            shares[task.kind] += [answer["identity"] for answer in answers if "identity" in answer]
        trained, general = shares["downstream"], shares["general"]
        # With a LoRA nothing bypasses it, so there is nothing to compare.
        if trained and general and any(any(share) for share in trained + general):
            aucs[column] = router_auc(trained, general)
    return aucs


def _seeds(kinds: Mapping[str, KindSummary]) -> dict[str, dict[str, Spread]]:
    spreads: dict[str, dict[str, Spread]] = {}
    for kind, summary in kinds.items():
        values: dict[str, list[float]] = {}
        for standing in summary.standings:
            if method := seeded_method(standing.variant):
                values.setdefault(method, []).append(standing.mean.score)
        for method, scores in values.items():
            if len(scores) > 1:
                spreads.setdefault(method, {})[kind] = spread(scores)
    return spreads
