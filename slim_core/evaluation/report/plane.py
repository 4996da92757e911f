# SPDX-License-Identifier: Apache-2.0
"""The plane of learning and forgetting (Biderman and others 2024, arXiv 2405.09673), as SVG.

To the right more is kept of what the base knew, upwards more is known of what was trained.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import NamedTuple

from ..statistics import Score
from ..summary import SEEDED
from .markup import COLOURS, percent


WIDTH, HEIGHT = 640, 440
LEFT, RIGHT, TOP, BOTTOM = 60, 20, 20, 50
# About what a letter of the labels takes.
LETTER, LINE = 6.5, 14


@dataclass(frozen=True)
class VariantPoint:
    """One variant on the plane.

    Attributes:
        name: of the variant.
        kept: its mean over the general tasks.
        learned: over the downstream tasks.
        line: the method on whose line it lies.
    """

    name: str
    kept: Score
    learned: Score
    line: str


def method_of(name: str) -> str:
    """The method of a variant: its name without the seed and without the strength of its gate."""
    match = SEEDED.fullmatch(name)
    return (match["method"] if match else name).split(", gate ")[0]


def frontier(points: Sequence[VariantPoint]) -> list[VariantPoint]:
    """The Pareto frontier, from left to right: nothing more can be kept without losing trained skills."""
    best: list[VariantPoint] = []
    for point in sorted(points, key=lambda p: (-p.kept.score, -p.learned.score)):
        if not best or point.learned.score > best[-1].learned.score:
            best.append(point)
    return best[::-1]


def plane(points: Sequence[VariantPoint], base: str) -> str:
    """The plane. A name is written beside its point where there is room; all are in the legend.

    Args:
        points: the variants.
        base: name of the one whose lines are dashed.
    """
    across = _Axis([p.kept for p in points], LEFT, WIDTH - RIGHT)
    up = _Axis([p.learned for p in points], HEIGHT - BOTTOM, TOP)
    methods = list(dict.fromkeys(point.line for point in points))
    signs = {method: _Sign.of(index) for index, method in enumerate(methods)}
    parts = [_axes(across, up)]
    for point in points:
        if point.name == base:
            parts.append(_dashed(across.at(point.kept.score), up.at(point.learned.score)))
    for method in methods:
        line = frontier([point for point in points if point.line == method])
        if len(line) > 1:
            places = " ".join(f"{across.at(p.kept.score):.1f},{up.at(p.learned.score):.1f}" for p in line)
            parts.append(
                f'<polyline points="{places}" fill="none" stroke="{signs[method].colour}" stroke-width="1.5"/>'
            )
    parts += [_point(point, across, up, signs[point.line]) for point in points]
    parts += _names(points, across, up)
    description = "; ".join(
        f"{p.name}: kept {percent(p.kept.score)}, learned {percent(p.learned.score)}" for p in points
    )
    return (
        f'<div class="wide"><svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img">'
        f"<title>{escape(description)}</title>{''.join(parts)}</svg></div>{_legend(signs)}"
    )


class _Axis:
    """Maps shares to positions on the page, with margins around all intervals.

    Args:
        scores: what must be seen.
        begin, end: where the lowest and the highest lie.
    """

    def __init__(self, scores: Sequence[Score], begin: float, end: float) -> None:
        low, high = min(score.low for score in scores), max(score.high for score in scores)
        room = max(0.02, (high - low) * 0.08)
        self.low, self.high = max(0.0, low - room), min(1.0, high + room)
        self._begin, self._end = begin, end

    def at(self, share: float) -> float:
        return self._begin + (share - self.low) / (self.high - self.low) * (self._end - self._begin)

    @property
    def ticks(self) -> list[float]:
        step = next(s for s in (0.01, 0.02, 0.05, 0.1, 0.2) if (self.high - self.low) / s <= 8)
        first = -int(-self.low // step)  # the next multiple from below
        return [number * step for number in range(first, int(self.high / step) + 1)]


def _axes(across: _Axis, up: _Axis) -> str:
    floor, wall = HEIGHT - BOTTOM, LEFT
    parts = [
        f'<path d="M{wall} {TOP}V{floor}H{WIDTH - RIGHT}" fill="none" stroke="currentColor" opacity=".6"/>',
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 10}" text-anchor="middle">'
        "general: what the base knew before, %</text>",
        f'<text transform="translate(16 {(TOP + floor) / 2:.0f}) rotate(-90)" text-anchor="middle">'
        "downstream: what was trained, %</text>",
    ]
    for tick in across.ticks:
        x = across.at(tick)
        parts.append(f'<path d="M{x:.1f} {floor}v5" stroke="currentColor" opacity=".6"/>')
        parts.append(f'<text x="{x:.1f}" y="{floor + 18}" text-anchor="middle">{100 * tick:.0f}</text>')
    for tick in up.ticks:
        y = up.at(tick)
        parts.append(f'<path d="M{wall - 5} {y:.1f}h5" stroke="currentColor" opacity=".6"/>')
        parts.append(f'<text x="{wall - 9}" y="{y + 4:.1f}" text-anchor="end">{100 * tick:.0f}</text>')
    return "".join(parts)


def _dashed(x: float, y: float) -> str:
    return (
        f'<path d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}M{LEFT} {y:.1f}H{WIDTH - RIGHT}" fill="none" '
        'stroke="currentColor" stroke-dasharray="5 4" opacity=".5"/>'
    )


class _Sign(NamedTuple):
    """How a method's points look. Where there are more methods than colours, the next ones are hollow, then square."""

    colour: str
    hollow: bool
    square: bool

    @classmethod
    def of(cls, index: int) -> _Sign:
        round_ = index // len(COLOURS)
        return cls(COLOURS[index % len(COLOURS)], bool(round_ % 2), bool(round_ // 2 % 2))

    def drawn(self, x: float, y: float, name: str) -> str:
        fill = "Canvas" if self.hollow else self.colour
        return (
            f'<rect x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8" rx="{0 if self.square else 4}" '
            f'fill="{fill}" stroke="{self.colour}" stroke-width="2"><title>{escape(name)}</title></rect>'
        )


def _point(point: VariantPoint, across: _Axis, up: _Axis, sign: _Sign) -> str:
    x, y = across.at(point.kept.score), up.at(point.learned.score)
    whiskers = (
        f"M{across.at(point.kept.low):.1f} {y:.1f}H{across.at(point.kept.high):.1f}"
        f"M{x:.1f} {up.at(point.learned.low):.1f}V{up.at(point.learned.high):.1f}"
    )
    return f'<path d="{whiskers}" stroke="{sign.colour}" fill="none" opacity=".7"/>{sign.drawn(x, y, point.name)}'


def _names(points: Sequence[VariantPoint], across: _Axis, up: _Axis) -> Iterator[str]:
    """The points' names that neither cover each other nor leave the plane; earlier points come first."""
    taken: list[tuple[float, float, float]] = []  # left end, right end, baseline
    for point in points:
        x, y = across.at(point.kept.score), up.at(point.learned.score)
        width = LETTER * len(point.name)
        # First towards the middle, where there is more space.
        sides = (-1, 1) if x > (LEFT + WIDTH - RIGHT) / 2 else (1, -1)
        for side, below in ((side, below) for below in (-7, LINE) for side in sides):
            left, right = sorted((x + side * 8, x + side * (8 + width)))
            inside = left >= LEFT and right <= WIDTH and TOP <= y + below <= HEIGHT - BOTTOM
            if inside and not any(left < b and a < right and abs(y + below - c) < LINE for a, b, c in taken):
                taken.append((left, right, y + below))
                anchor = "end" if side < 0 else "start"
                yield (
                    f'<text x="{x + side * 8:.1f}" y="{y + below:.1f}" text-anchor="{anchor}">'
                    f"{escape(point.name)}</text>"
                )
                break


def _legend(signs: Mapping[str, _Sign]) -> str:
    entries = (
        f'<li><svg width="12" height="12" aria-hidden="true">{sign.drawn(6, 6, method)}</svg> {escape(method)}</li>'
        for method, sign in signs.items()
    )
    return f'<ul class="legend">{"".join(entries)}</ul>'
