# SPDX-License-Identifier: Apache-2.0
"""Ways of doing something are timed in turn within one run, so that changes of the machine's speed affect them all
alike.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch


# Seconds by the name of what was measured: "run" where it is one thing.
Measures = dict[str, float]
Way = Callable[[], Measures]
# A turn of something short.
LEAST_SECONDS = 0.1


@dataclass(frozen=True)
class Measured:
    """One measure of one way, over all rounds.

    Attributes:
        way: its name.
        measure: what was measured.
        seconds: the median.
        low, high: the quartiles, in seconds; the least and the most of fewer than four rounds.
        ratios: by the name of another way, the median over the rounds of the ratio to it within the round.
        facts: what else is known: bytes, shares of a limit.
    """

    way: str
    measure: str
    seconds: float
    low: float
    high: float
    ratios: dict[str, float]
    facts: dict[str, float]

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def synchronise(device: str | torch.device) -> None:
    """Wait until the device has done what it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def repeated(run: Callable[[], object], device: str) -> Way:
    """A way that repeats something short, so that neither the clock nor an interruption matters.

    Args:
        run: what is timed.
        device: where it runs.
    """
    count = 0

    def once(times: int) -> float:
        synchronise(device)
        start = time.perf_counter()
        for _ in range(times):
            run()
        synchronise(device)
        return (time.perf_counter() - start) / times

    def turn() -> Measures:
        nonlocal count
        if not count:
            once(3)
            count = max(1, round(LEAST_SECONDS / once(2)))
        return {"run": once(count)}

    return turn


def take_turns(ways: Mapping[str, Way], rounds: int, warm_up: int = 1) -> dict[str, list[Measures]]:
    """Let every way have its turn in every round.

    Args:
        ways: by name.
        rounds: that are measured. warm_up: rounds before them that are not.
    """
    measured: dict[str, list[Measures]] = {name: [] for name in ways}
    for number in range(warm_up + rounds):
        for name, way in ways.items():
            measures = way()
            if number >= warm_up:
                measured[name].append(measures)
    return measured


def summary(
    measured: Mapping[str, Sequence[Measures]],
    references: Sequence[str],
    facts: Callable[[str, str, float], dict[str, float]] = lambda way, measure, seconds: {},
) -> list[Measured]:
    """Medians, their spread, and ratios.

    Args:
        measured: of `take_turns`.
        references: ways that the others are compared with, where they have the same measure.
        facts: of the median of a way's measure.
    """
    rows = []
    for way, rounds in measured.items():
        for measure in rounds[0]:
            values = [measures[measure] for measures in rounds]
            low, _, high = statistics.quantiles(values, n=4) if len(values) > 3 else (min(values), 0, max(values))
            ratios = {
                other: statistics.median(v / o[measure] for v, o in zip(values, measured[other], strict=True))
                for other in references
                if other in measured and measure in measured[other][0]
            }
            median = statistics.median(values)
            rows.append(Measured(way, measure, median, low, high, ratios, facts(way, measure, median)))
    return rows
