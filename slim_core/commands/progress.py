# SPDX-License-Identifier: Apache-2.0
"""Progress of a long command on standard error: a bar in a terminal, lines elsewhere."""

from __future__ import annotations

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ..outside.errors import printable
from .console import screen


class CountedProgress:
    """How many of a known number of results have arrived.

    Args:
        title: of the bar, before the first result.
        total: how many will arrive.
        most_lines: without a terminal, how many lines are printed at most; None prints one for each result.
    """

    def __init__(self, title: str, total: int, most_lines: int | None = None) -> None:
        self._total, self._done = total, 0
        self._every = 1 if most_lines is None else max(1, total // most_lines)
        self._console = screen(stderr=True, soft_wrap=True)
        self._bar: Progress | None = None
        if self._console.is_terminal:
            columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
            self._bar = Progress(
                *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self._console, transient=True
            )
            self._task = self._bar.add_task(title, total=total)

    def __enter__(self) -> CountedProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def next(self, name: str, note: str = "") -> None:
        """Another result has arrived.

        Args:
            name: of the result.
            note: what a line says behind the name.
        """
        self._done += 1
        if self._bar is not None:
            self._bar.update(self._task, advance=1, description=printable(name))
        elif self._done == self._total or self._done % self._every == 0:
            self._console.print(printable(f"{self._done} of {self._total}, {name}{note}"), highlight=False)
