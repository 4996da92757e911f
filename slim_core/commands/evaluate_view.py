# SPDX-License-Identifier: Apache-2.0
"""The results of an evaluation for a terminal."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..evaluation.metrics import SOLVES, comparison_sentence
from ..evaluation.report.markup import interval, plain_interval
from ..evaluation.report.page import MORE, SCORINGS, notes
from ..evaluation.results import Evaluation
from ..evaluation.summary import BASE, Group
from ..outside.errors import printable


def show(evaluation: Evaluation, console: Console) -> None:
    """Print scores, what was kept, and the comparison of each adapter with the base."""
    labels = {column: printable(label) for column, label in evaluation.labels.items()}
    for group in evaluation.groups:
        console.print(_scores(group, labels), "")
        for sentence in notes(group):
            console.print(printable(sentence), soft_wrap=True, highlight=False)
        for kind, summary in group.kinds.items():
            for standing in summary.standings:
                if standing.retention is not None and kind == "general" and group.scoring != "captured":
                    console.print(
                        f"{labels[standing.variant]} keeps {interval(standing.retention)} % of what the base solves.",
                        soft_wrap=True,
                        highlight=False,
                    )
            for comparison in summary.comparisons:
                if BASE in (comparison.first, comparison.second):
                    names = labels[comparison.first], labels[comparison.second]
                    sentence = comparison_sentence(comparison, *names, MORE.get(group.scoring, SOLVES))
                    console.print(f"{kind}: {sentence}", soft_wrap=True, highlight=False)
        console.print()


def _scores(group: Group, labels: Mapping[str, str]) -> Table:
    table = Table(title=SCORINGS[group.scoring], title_justify="left", box=None, pad_edge=False)
    table.add_column("task", overflow="fold")
    table.add_column("n", justify="right")
    for label in labels.values():
        table.add_column(Text(label), justify="right", overflow="fold")
    shown = plain_interval if group.scoring == "loss" else interval
    for task in group.tasks:
        cells = [shown(task.scores[column]) for column in labels]
        table.add_row(Text(f"{printable(task.title)} ({task.kind})"), str(task.n), *cells)
    for kind, summary in group.kinds.items():
        if len(summary.tasks) > 1 and summary.standings:
            cells = [interval(standing.mean) for standing in summary.standings]
            table.add_row(f"all {kind}", "", *cells, style="bold")
    return table
