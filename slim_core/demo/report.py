# SPDX-License-Identifier: Apache-2.0
"""The stored results of the demo, as tables for a terminal or for Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from rich.table import Table as RichTable

from ..evaluation.statistics import Marks, difference, mean_score
from .seeds import PAIRS as SEED_PAIRS
from .seeds import SeedMarks, marks_by_seed, mean_marks
from .verify import KINDS, OPEN, VARIANTS, pairs
from .words import task_words


LABELS = {"base": "base", "lora": "LoRA", "lora_half": "LoRA, half the Linears", "slim": "SLIM", OPEN: "SLIM, open"}
TEXT = ("task", "method", "form", "what", "kind", "compared", "block")  # columns that are aligned to the left


@dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
        title: what it shows.
        columns: their names.
        rows: the cells.
        bold: the rows that stand out.
    """

    title: str
    columns: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)
    bold: set[int] = field(default_factory=set)

    def add(self, *cells: str, bold: bool = False) -> None:
        """One more row."""
        if bold:
            self.bold.add(len(self.rows))
        self.rows.append(cells)

    def markdown(self) -> str:
        """The table in Markdown, under its title."""
        sides = ["---" if column in TEXT else "---:" for column in self.columns]
        cells = (
            [f"**{cell}**" if cell and index in self.bold else cell for cell in row]
            for index, row in enumerate(self.rows)
        )
        lines = ("| " + " | ".join(row) + " |" for row in (self.columns, sides, *cells))
        return "\n".join((f"{self.title}:", "", *lines))

    def rich(self) -> RichTable:
        """The table for a terminal."""
        table = RichTable(title=self.title, title_justify="left", box=None, padding=(0, 1, 0, 0), pad_edge=False)
        for column in self.columns:
            # Where there is no room, a cell takes several lines; nothing of it is left out.
            table.add_column(column, justify="left" if column in TEXT else "right", overflow="fold")
        for index, row in enumerate(self.rows):
            table.add_row(*row, style="bold" if index in self.bold else "")
        return table


def tables(results: Mapping[str, Any], build: Mapping[str, Any] | None) -> list[Table]:
    """Tables of everything that is stored.

    Args:
        results: `results.json`.
        build: `build.json`; None if the demo was not built in one go.
    """
    marks = None if build is None else marks_by_seed(results, build)
    measured = [_tasks(results), _pairs(results, marks), _plane(results, marks), _identity(results), *_forms(results)]
    if build is None or marks is None:
        return measured
    return [_base(build), _sweep(build), *measured, over_seeds(marks), differences_over_seeds(marks)]


def summary_table(results: Mapping[str, Any]) -> Table:
    """What the base knew before and what was trained, mean over the tasks."""
    table = Table("Right answers to test questions in %, with 95 % intervals", ("what", *map(_label, VARIANTS)))
    for kind in KINDS:
        table.add(kind, *(_interval(results["means"][kind][variant]) for variant in VARIANTS))
    return table


def scores_in_form(results: Mapping[str, Any], form: str) -> str:
    """What each variant knows of the trained tasks in another form, in %, on one line.

    Args:
        results: `results.json`.
        form: of `forms.FORMS`.
    """
    row = results["forms"]["downstream"][form]
    return "; ".join(f"{_label(variant)} {_percent(row[variant][0])}" for variant in VARIANTS)


def _tasks(results: Mapping[str, Any]) -> Table:
    table = Table("Right answers to test questions in %, with 95 % intervals", ("task", "n", *map(_label, VARIANTS)))
    for kind in KINDS:
        for name, task in results["tasks"].items():
            if task["kind"] == kind:
                table.add(
                    task_words(name), str(task["n"]), *(_interval(task[variant].values()) for variant in VARIANTS)
                )
        means = results["means"][kind]
        table.add(f"all {kind}", "", *(_interval(means[variant]) for variant in VARIANTS), bold=True)
    return table


def _pairs(results: Mapping[str, Any], by_seed: Mapping[str, SeedMarks] | None) -> Table:
    table = Table(
        "Differences on the same questions in points, with 95 % intervals and McNemar's exact p",
        ("compared", "kind", "difference", "only first", "only second", "p"),
    )
    slim = results["marks"]["slim"]
    halves = [] if by_seed is None else pairs({"slim": slim, "lora_half": _half(by_seed)}, [("slim", "lora_half")])
    for pair in [*results["pairs"], *halves]:
        mean, low, high = (100 * share for share in pair["difference"])
        table.add(
            f"{_label(pair['first'])} – {_label(pair['second'])}",
            pair["kind"],
            f"{mean:+.1f} ({low:+.1f} to {high:+.1f})",
            str(pair["only_first"]),
            str(pair["only_second"]),
            _chance(pair["p"]),
        )
    return table


def _plane(results: Mapping[str, Any], by_seed: Mapping[str, SeedMarks] | None) -> Table:
    table = Table("What was learned and what was kept, mean over the tasks in %", ("what", *KINDS))
    for point in results["plane"]:
        name = _label(point["variant"])
        if "scale" in point:
            name += f" × {point['scale']:g}" if point["scale"] != 1 else ""
        if "strength" in point:
            name += f", strength {point['strength']:g}"
        shipped = point.get("scale", 1) == 1 and point["variant"] != "slim"
        table.add(name, *(_interval(point[kind]) for kind in KINDS), bold=shipped or _as_trained(point, results))
    if by_seed is not None:
        table.add(_label("lora_half"), *(_interval(mean_score(_half(by_seed), tasks)) for tasks in KINDS.values()))
    return table


def _half(by_seed: Mapping[str, SeedMarks]) -> Marks:
    """The marks of LoRA on half of the Linears, from the first seed."""
    return next(iter(by_seed["lora_half"].values()))


def over_seeds(by_seed: Mapping[str, SeedMarks]) -> Table:
    """For each method, the mean score of the seeds' adapters with the lowest and highest."""
    table = Table(
        "Test questions at the chosen rates, mean (range) over seeds in %", ("method", "seeds", *reversed(KINDS))
    )
    for name, marks in by_seed.items():
        means = ([mean_score(each, KINDS[kind]).score for each in marks.values()] for kind in reversed(KINDS))
        table.add(_label(name), str(len(marks)), *map(spread, means))
    return table


def differences_over_seeds(
    by_seed: Mapping[str, SeedMarks], compared: Sequence[tuple[str, str]] = SEED_PAIRS
) -> Table:
    """How the methods' means over the seeds differ."""
    title = (
        "Differences of the means over seeds on the same questions in points, with 95 % intervals from a bootstrap "
        "over questions"
    )
    table = Table(title, ("compared", "kind", "difference"))
    for first, second in compared:
        for kind, tasks in KINDS.items():
            mean, low, high = (
                100 * share for share in difference(mean_marks(by_seed[first]), mean_marks(by_seed[second]), tasks)
            )
            table.add(f"{_label(first)} – {_label(second)}", kind, f"{mean:+.1f} ({low:+.1f} to {high:+.1f})")
    return table


def _as_trained(point: Mapping[str, Any], results: Mapping[str, Any]) -> bool:
    """Whether it is SLIM as it ships: the first of SLIM's points."""
    return point == next(p for p in results["plane"] if p["variant"] == "slim")


def _identity(results: Mapping[str, Any]) -> Table:
    identity = results["identity"]
    tasks = list(identity["tasks"])
    title = (
        "Mean share of a prompt that bypasses LoRA in %, area under the ROC curve of general against trained, and the "
        "answers that are the base's by construction in %"
    )
    table = Table(title, ("block", *map(task_words, tasks), "AUC"))
    rows = {str(index): block for index, block in enumerate(identity["blocks"])} | {"all": identity}
    for name, row in rows.items():
        shares = (_percent(row["tasks"][task]) for task in tasks)
        table.add(name, *shares, f"{row['auc']:.4f}", bold=name == "all")
    if "exact" in identity:
        table.add("exact answers", *(_percent(identity["exact"][task]) for task in tasks), "")
    return table


def _forms(results: Mapping[str, Any]) -> Iterable[Table]:
    titles = {
        "general": "General questions beside trained ones, right answers in %",
        "downstream": "Trained tasks in other forms, right answers in %",
    }
    for kind, forms in results["forms"].items():
        table = Table(titles[kind], ("form", "n", *map(_label, VARIANTS), "past LoRA"))
        for form, row in forms.items():
            scores = (_percent(row[variant][0]) for variant in VARIANTS)
            table.add(form, str(row["n"]), *scores, _percent(row["identity"]))
        yield table


def _base(build: Mapping[str, Any]) -> Table:
    before, after = build["base"]["questions"], build["base"]["conversations"]
    table = Table("The base on validation questions in %, before and after it learned conversations", (
        "what", "questions only", "conversations"
    ))  # fmt: skip
    for name in after:
        table.add(task_words(name), _percent(before[name]), _percent(after[name]))
    return table


def _sweep(build: Mapping[str, Any]) -> Table:
    """For each rate, the mean over the seeds with the lowest and highest value."""
    rows = build["sweep"]
    table = Table(
        f"Sweep: {build['validation_questions']} validation questions of each task, mean (range) over seeds in %; "
        "× are factors of what LoRA adds, first seed",
        ("method", "rate", "seeds", *reversed(KINDS), *(f"× {scale:g}" for scale in _scales(rows))),
    )
    for method in build["chosen"]:
        for rate in dict.fromkeys(row["rate"] for row in rows):
            matching = [row for row in rows if (row["method"], row["rate"]) == (method, rate)]
            if not matching:  # it was not tried at this rate
                continue
            rewound = {point["scale"]: point for row in matching for point in row["rewound"]}
            table.add(
                _label(method),
                f"{rate:g}",
                str(len(matching)),
                *(spread([row[kind] for row in matching]) for kind in reversed(KINDS)),
                *(_rewound(rewound.get(scale)) for scale in _scales(rows)),
                bold=build["chosen"][method]["rate"] == rate,
            )
    return table


def _scales(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    return sorted({point["scale"] for row in rows for point in row["rewound"]}, reverse=True)


def _rewound(point: Mapping[str, Any] | None) -> str:
    return "" if point is None else f"{_percent(point['downstream'])} / {_percent(point['general'])}"


def spread(values: Sequence[float]) -> str:
    """The mean of shares with the least and the most, in %."""
    between = f" ({_percent(min(values))}–{_percent(max(values))})" if len(values) > 1 else ""
    return _percent(fmean(values)) + between


def _label(name: str) -> str:
    adapter, *rest = name.split(" ", 1)
    return LABELS.get(name) or " ".join([LABELS.get(adapter, adapter), *rest]).replace(" x ", " × ").replace(
        " at ", ", strength "
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _interval(score: Iterable[float]) -> str:
    mean, low, high = score
    return f"{_percent(mean)} ({_percent(low)}–{_percent(high)})"


def _chance(p: float) -> str:
    return f"{p:.2g}" if p >= 1e-4 else "< 0.0001"
