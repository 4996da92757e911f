# SPDX-License-Identifier: Apache-2.0
"""The plane of learning and forgetting: a point for each contender at each rate, and what the methods' frontiers say.

A frontier joins the points of a method of which none is better in both. What a method keeps at a level of learning is
read off the straight lines of its frontier, although nothing was measured between two points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..baselines import METHODS
from ..demo.report import Table
from ..evaluation.report.markup import percent, signed
from ..evaluation.report.plane import VariantPoint, frontier
from ..evaluation.statistics import Score, difference, mean_score, rank_correlation
from ..evaluation.summary import BASE, Group
from .collect import ByTask, Part, columns_by_rate, values_of
from .runs import Contender


OWN = METHODS["slim"].title
# How far below the most that SLIM learned the frontiers are compared: a method may learn a little less and keep more.
BELOW = (0.0, 0.01, 0.02)
NEAR = 0.01  # scores this near the best count as reaching it
FEWEST = 4  # adapters of which a rank correlation says something


@dataclass(frozen=True)
class Level:
    """What methods keep where they have learned so much.

    Attributes:
        learned: the mean on the downstream tasks.
        kept: by method, SLIM too, its mean on the general tasks; None where it learns less.
        leads: by other method, SLIM's mean minus the other's, with a paired bootstrap interval; None where the other
            learns less.
    """

    learned: float
    kept: Mapping[str, float | None]
    leads: Mapping[str, Score | None]


@dataclass(frozen=True)
class Frontiers:
    """The frontiers of a group of tasks.

    Attributes:
        most: by method, the most that it learned; SLIM first.
        levels: at which they are compared, from the most that SLIM learned downwards.
    """

    most: Mapping[str, float]
    levels: Sequence[Level]


def points_of(part: Part, group: Group, contenders: Sequence[Contender]) -> list[VariantPoint]:
    """The base, and each contender at each of its rates, means over the seeds."""
    return [point for point, _ in _places(part, group, contenders)]


def _places(part: Part, group: Group, contenders: Sequence[Contender]) -> list[tuple[VariantPoint, tuple[str, ...]]]:
    """The points, each with the columns that it is the mean of."""
    base = _point("Base", "Base", part, group, [BASE])
    places: list[tuple[VariantPoint, tuple[str, ...]]] = [(base, (BASE,))]
    rates = {cell.rate for cell in part.columns.values()}
    for contender in contenders:
        for rate, columns in columns_by_rate(part.columns, contender).items():
            name = contender.title if len(rates) == 1 else f"{contender.title}, {rate:g}"
            places.append((_point(name, contender.on_line, part, group, columns), tuple(columns)))
    return places


def _point(name: str, line: str, part: Part, group: Group, columns: Sequence[str]) -> VariantPoint:
    marks = (values_of(part, group, kind, columns) for kind in ("general", "downstream"))
    kept, learned = (mean_score(each, list(each)) for each in marks)
    return VariantPoint(name, kept, learned, line)


def frontiers_of(part: Part, group: Group, contenders: Sequence[Contender]) -> Frontiers | None:
    """Compare SLIM's frontier with every other method's; None where there is nothing to compare.

    Other ways to train SLIM are no other methods.
    """
    of_slim = {contender.on_line for contender in contenders if contender.setup.method == "slim"}
    places = _places(part, group, contenders)
    columns = {point.name: names for point, names in places}
    lines: dict[str, list[VariantPoint]] = {}
    for point, _ in places[1:]:
        if point.line == OWN or point.line not in of_slim:
            lines.setdefault(point.line, []).append(point)
    if len(lines) < 2 or OWN not in lines:
        return None
    most = {name: max(point.learned.score for point in points) for name, points in lines.items()}
    most = {OWN: most.pop(OWN)} | most
    best = {name: frontier(lines[name]) for name in most}
    marks = {
        point.name: values_of(part, group, "general", columns[point.name]) for line in best.values() for point in line
    }
    return Frontiers(most, [_level(most[OWN] - below, best, marks) for below in BELOW])


def _level(level: float, lines: Mapping[str, Sequence[VariantPoint]], marks: Mapping[str, ByTask]) -> Level:
    kept: dict[str, float | None] = {}
    mixed: dict[str, ByTask] = {}
    for name, line in lines.items():
        shares = _shares(line, level)
        kept[name] = None if shares is None else sum(share * point.kept.score for point, share in shares)
        if shares is not None:
            mixed[name] = _mixed([(marks[point.name], share) for point, share in shares])
    own = mixed.pop(OWN)
    leads = {name: difference(own, mixed[name], list(own)) if name in mixed else None for name in lines if name != OWN}
    return Level(level, kept, leads)


def _mixed(parts: Sequence[tuple[ByTask, float]]) -> ByTask:
    """Marks of a point that lies between others."""
    return {
        task: [
            sum(share * value for (_, share), value in zip(parts, values, strict=True))
            for values in zip(*(marks[task] for marks, _ in parts), strict=True)
        ]
        for task in parts[0][0]
    }


def _shares(line: Sequence[VariantPoint], level: float) -> list[tuple[VariantPoint, float]] | None:
    """The point of a frontier at a level of learning, as shares of the points of which it lies between; None where
    the frontier ends below.

    Args:
        line: from what learned most to what kept most.
        level: of learning.
    """
    reaching = [point for point in line if point.learned.score >= level - 1e-9]
    if not reaching:
        return None
    above, rest = reaching[-1], line[len(reaching) :]
    if not rest:
        return [(above, 1.0)]
    way = max(0.0, above.learned.score - level) / (above.learned.score - rest[0].learned.score)
    return [(above, 1.0 - way), (rest[0], way)]


# -- for people --------------------------------------------------------------------------------------------------


def frontier_table(frontiers: Frontiers, where: str) -> Table:
    """A row for each method, and for each level what it keeps there."""
    names = [text for level in frontiers.levels for text in (f"kept at {percent(level.learned)}", "SLIM above it by")]
    table = Table(
        f"Frontiers: {where}the most that each method learned in %, and what it keeps of the general tasks where it "
        "learned as much as SLIM, 1 point less, and 2 points less, on straight lines between its points; differences "
        "in points with 95 % intervals (paired bootstrap over items)",
        ("method", "most learned", *names),
    )
    for name, most in frontiers.most.items():
        cells = []
        for level in frontiers.levels:
            kept, lead = level.kept[name], level.leads.get(name)
            cells += ["–" if kept is None else percent(kept), "–" if lead is None else signed(lead)]
        table.add(name, percent(most), *cells, bold=name == OWN)
    return table


def frontier_sentence(frontiers: Frontiers) -> str:
    """At each level, which frontiers SLIM's is shown to lie above."""
    rivals = {name: most for name, most in frontiers.most.items() if name != OWN}
    best, own = max(rivals, key=rivals.__getitem__), frontiers.most[OWN]
    sentences = []
    if own < rivals[best] - NEAR:
        sentences.append(f"SLIM learns {percent(own)} %, and {best} {percent(rivals[best])} %.")
    for level in frontiers.levels:
        leads = {name: lead for name, lead in level.leads.items() if lead is not None}
        below = [name for name, lead in leads.items() if lead.low > 0]
        others = [name for name in leads if name not in below]
        if not leads:
            sentences.append(f"No other method learns {percent(level.learned)} %.")
            continue
        sentence = (
            f"At {percent(level.learned)} % learned, SLIM's frontier lies above those of {len(below)} of the "
            f"{len(leads)} other methods that learn so much"
        )
        sentences.append(f"{sentence}; not shown is that it lies above {_and(others)}." if others else f"{sentence}.")
    return " ".join(sentences)


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{'; '.join(names[:-1])} and {names[-1]}"


def razor_sentence(part: Part, group: Group, contenders: Sequence[Contender]) -> str | None:
    """Whether KL(base || adapter) on the trained tasks tells the drop on the general ones, as RL's Razor has it
    (Shenfeld and others 2025, arXiv 2509.04259), and whether SLIM does as this says; None where too few are measured.
    """
    base = _point("", "", part, group, [BASE]).kept.score
    others: list[tuple[float, float, str]] = []
    own: list[tuple[float, float, str]] = []
    for point, columns in _places(part, group, contenders)[1:]:
        kls = [score.score for column in columns if (score := group.kinds["downstream"].kl.get(column)) is not None]
        method = part.columns[columns[0]].contender.setup.method
        if len(kls) == len(columns) and (method != "slim" or point.line == OWN):
            (own if method == "slim" else others).append((sum(kls) / len(kls), base - point.kept.score, point.name))
    ranks = rank_correlation([kl for kl, _, _ in others], [drop for _, drop, _ in others]) if others else None
    if len(others) < FEWEST or ranks is None:
        return None
    sentences = [
        "RL's Razor (arXiv 2509.04259) says that how far an adapter is from the base on what it was trained on tells "
        f"how much it forgets. Of the {len(others)} other adapters, this KL and the drop have a rank correlation of "
        f"{ranks:.2f}."
    ]
    for kl, drop, name in own:
        near = min(others, key=lambda other: abs(other[0] - kl))
        sentences.append(
            f"{name}, {kl:.2f} nats from the base, drops by {percent(drop)} points; {near[2]}, the nearest of the "
            f"others with {near[0]:.2f} nats, by {percent(near[1])}."
        )
    return " ".join(sentences)
