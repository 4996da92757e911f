# SPDX-License-Identifier: Apache-2.0
"""Tables of measurements, and their JSON file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from ..outside.errors import printable
from .console import refuse, screen


if TYPE_CHECKING:
    from ..evaluation.bench.clients import Served
    from ..evaluation.bench.memory import Used
    from ..evaluation.bench.turns import Measured


class Report:
    """One run of a bench: each case is shown and saved as it comes, so that a run that is stopped leaves what it has.

    Args:
        bench: its name.
        device: that is measured.
        file: new one for the JSON; None for none.
        settings: what was asked for.
    """

    def __init__(self, bench: str, device: str, file: Path | None, **settings: Any) -> None:
        from ..evaluation.bench.machine import describe_machine, sentence_of

        if file is not None and file.exists():
            refuse(f"{file} exists already: name a new file.")
        if file is not None and not file.parent.is_dir():
            refuse(f"There is no folder {file.parent}: make it first.")
        self._file, self._console = file, screen()
        machine = describe_machine(device)
        self._measured: dict[str, Any] = {"bench": bench, "machine": machine, "settings": settings, "cases": []}
        self.say(printable(sentence_of(machine)))

    def say(self, sentence: str) -> None:
        """Print a line."""
        self._console.print(sentence, highlight=False)

    def note(self, **facts: Any) -> None:
        """Note facts for the file."""
        self._measured.update(facts)

    def leave_out(self, name: str, reason: str) -> None:
        """Say what was not measured."""
        self._measured.setdefault("left_out", {})[name] = reason
        self.say(f"{name} was left out: {printable(reason)}")
        self._save()

    def add(self, title: str, measured: Sequence[Measured]) -> None:
        """Show and keep a case, ratios first."""
        self._keep(title, measured)
        for measure in dict.fromkeys(row.measure for row in measured):
            rows = [row for row in measured if row.measure == measure]
            references = list(dict.fromkeys(name for row in rows for name in row.ratios))
            facts = list(dict.fromkeys(name for row in rows for name in row.facts))
            table = Table(title=title if measure == "run" else f"{title}: {measure}", title_justify="left")
            for column in ("", *(f"× {name}" for name in references), "ms", "quartiles", *facts):
                table.add_column(column.replace("_", " "), justify="right" if column else "left")
            for row in rows:
                ratios = [f"{row.ratios[name]:.2f}" if name in row.ratios else "" for name in references]
                known = [_formatted(name, row.facts[name]) if name in row.facts else "" for name in facts]
                spread = f"{_ms(row.low)} – {_ms(row.high)}"
                table.add_row(row.way, *ratios, _ms(row.seconds), spread, *known)
            self._console.print(table)

    def add_clients(self, title: str, served: Sequence[Served]) -> None:
        """Show and keep what clients got."""
        self._keep(title, served)
        table = Table(title=printable(title), title_justify="left")
        times = ("clients", "× 1st", "answers/s", "least – most", "p50 s", "p99 s")
        for column in (*times, "answered", "refused", "lost"):
            table.add_column(column, justify="right")
        for row in served:
            ratio = row.answers_per_second / served[0].answers_per_second if served[0].answers_per_second else 0.0
            low, high = row.spread
            rates = (f"{ratio:.2f}", f"{row.answers_per_second:.1f}", f"{low:.1f} – {high:.1f}")
            counts = (str(row.answers), str(row.refused), str(row.lost))
            table.add_row(str(row.clients), *rates, _seconds(row.p50), _seconds(row.p99), *counts)
        self._console.print(table)

    def add_memory(self, title: str, used: Sequence[Used]) -> None:
        """Show and keep peak memory; ratios are to the first."""
        self._keep(title, used)
        table = Table(title=title, title_justify="left")
        for column in ("", f"× {used[0].way}", "peak", f"weights × {used[0].way}", "weights"):
            table.add_column(column, justify="right" if column else "left")
        for row in used:
            known = ("", "not known")
            if row.peak is not None and used[0].peak:
                known = (f"{row.peak / used[0].peak:.2f}", _formatted("bytes", row.peak))
            table.add_row(row.way, *known, f"{row.weights / used[0].weights:.2f}", _formatted("bytes", row.weights))
        self._console.print(table)

    def _keep(self, title: str, rows: Sequence[Measured] | Sequence[Served] | Sequence[Used]) -> None:
        self._measured["cases"].append({"title": title, "rows": [row.plain() for row in rows]})
        self._save()

    def _save(self) -> None:
        if self._file is not None:
            from .files import write_whole  # it imports torch

            write_whole(self._file, json.dumps(self._measured, indent=1, allow_nan=False) + "\n")


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}" if seconds < 0.1 else f"{1e3 * seconds:.0f}"


def _seconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.2f}"


def _formatted(name: str, value: float) -> str:
    if name.startswith("share"):
        return f"{100 * value:.0f} %"
    return f"{value / 1e6:,.1f} MB" if name.endswith("bytes") else f"{value:,.0f}"
