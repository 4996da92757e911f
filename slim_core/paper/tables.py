# SPDX-License-Identifier: Apache-2.0
"""The tables of an experiment, for a terminal or for Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from ..base.formatting import size
from ..demo.report import Table
from ..evaluation.metrics import Comparison, spread
from ..evaluation.report.markup import interval, percent, signed
from ..evaluation.report.page import same_sentence
from ..evaluation.solving import Sample
from ..evaluation.statistics import LEVEL, Score, difference, mean_score, ratio
from ..evaluation.summary import BASE, Group, TaskScores, solved_samples
from ..evaluation.tasks import asked, short_title
from .collect import ByTask, Collected, Part, key_of, kinds_of, values_of
from .execute import LEFT_OUT
from .frontier import Frontiers, frontier_sentence, frontier_table, frontiers_of, razor_sentence
from .runs import Contender
from .sequence import sequence_tables


MISSING = "not measured"
UNDECIDED = "rate not chosen yet"
NONE = "–"


def tables(collected: Collected) -> list[Table]:
    """All tables of what is finished."""
    result: list[Table] = []
    for part in collected.parts:
        for group in part.evaluation.groups:
            result += _group(collected, part, group)
    if collected.experiment.name == "sequence":
        result = [*sequence_tables(collected), *result]
    if collected.experiment.name == "overhead":
        result.insert(0, _overhead(collected))
    if not result and collected.experiment.contenders:
        result.append(_nothing(collected))
    return result


def notes(collected: Collected) -> list[str]:
    """Sentences below the tables."""
    sentences = [collected.experiment.note] if collected.experiment.note else []
    if any(part.chosen for part in collected.parts):
        sentences.append(
            "The rate of each method is the one with the lowest validation loss on what it was trained on, once it is "
            "trained at all of them; a LoRA that is changed afterwards has the rate of the LoRA that it is made from."
        )
    for part in collected.parts:
        for group in part.evaluation.groups:
            if (frontiers := _frontiers(collected, part, group)) is not None:
                sentences.append(frontier_sentence(frontiers))
                razor = razor_sentence(part, group, collected.experiment.contenders)
                sentences += [] if razor is None else [razor]
    same = same_sentence([group for part in collected.parts for group in part.evaluation.groups])
    sentences += [] if same is None else [same]
    sentences += [f"{why} {LEFT_OUT}" for part in collected.parts for why in part.left_out.values()]
    if collected.missing:
        sentences.append(f"{len(collected.missing)} of {len(collected.files)} cells are missing: {_list(collected)}.")
    return sentences


def _list(collected: Collected) -> str:
    return "; ".join(cell.words for cell in collected.missing)


def _nothing(collected: Collected) -> Table:
    table = Table(collected.experiment.title, ("method", "downstream", "general"))
    for contender in collected.experiment.contenders:
        table.add(contender.title, MISSING, MISSING)
    return table


def _group(collected: Collected, part: Part, group: Group) -> Iterator[Table]:
    rows = [contender for contender in collected.experiment.contenders if contender.part == part.name]
    scope = f"trained on {rows[0].learns}; " if rows[0].learns else ""
    yield _scores(collected, part, group, rows, scope)
    yield _tasks(part, group, rows, scope)
    if collected.experiment.name in ("overhead", "case-study"):
        return
    yield _tests(collected, part, group, rows, scope)
    yield _distances(part, group, rows, scope)
    if collected.experiment.name == "noise":
        yield _bypassed(part, group, rows, scope)
    if (frontiers := _frontiers(collected, part, group)) is not None:
        yield frontier_table(frontiers, scope)
    if part.chosen:
        yield _rates(part, group, rows, scope)


def _frontiers(collected: Collected, part: Part, group: Group) -> Frontiers | None:
    """Only where rivals, or several points of one method, are compared with SLIM as it is."""
    if collected.experiment.name not in ("table2", "steps") or len(kinds_of(group)) < 2:
        return None
    return frontiers_of(part, group, collected.experiment.contenders)


# -- scores ------------------------------------------------------------------------------------------------------


def _scores(collected: Collected, part: Part, group: Group, rows: Sequence[Contender], scope: str) -> Table:
    n = {kind: sum(task.n for task in group.tasks if task.kind == kind) for kind in kinds_of(group)}
    counts = ", ".join(f"{count:,} {kind}" for kind, count in n.items())
    table = Table(
        f"{collected.experiment.title}: {scope}mean over the tasks in % with 95 % intervals; {counts} questions",
        ("method", "seeds", "downstream", "over seeds", "general", "over seeds", "drop", "retention",
         "paper: downstream", "paper: general"),
    )  # fmt: skip
    base = {kind: values_of(part, group, kind, [BASE]) for kind in kinds_of(group)}
    table.add("base", NONE, *_two(base, lambda values: [interval(mean_score(values, list(values))), NONE]),
              NONE, NONE, NONE, NONE)  # fmt: skip
    for contender in rows:
        columns = part.columns_of(contender)
        paper = [_number(contender.paper.get(kind)) for kind in ("downstream", "general")]
        if not columns:
            missing = _why_missing(part, contender)
            table.add(contender.title, "0", missing, "", missing, "", "", "", *paper)
            continue
        marks = {kind: values_of(part, group, kind, columns) for kind in kinds_of(group)}
        cells = []
        for kind in ("downstream", "general"):
            cells += _score_and_spread(part, group, kind, marks, columns)
        retention = ratio(marks["general"], base["general"], list(base["general"])) if "general" in marks else None
        drop = difference(base["general"], marks["general"], list(marks["general"])) if "general" in marks else None
        table.add(
            contender.title,
            str(len(columns)),
            *cells,
            NONE if drop is None else points(drop),
            NONE if retention is None else interval(retention),
            *paper,
            bold=contender.setup.method == "slim" and contender.name == "slim",
        )
    return table


def _why_missing(part: Part, contender: Contender) -> str:
    measured = any(cell.contender.name == contender.name for cell in part.columns.values())
    return UNDECIDED if measured else MISSING


def _two(base: Mapping[str, ByTask], show: Any) -> list[str]:
    return [cell for kind in ("downstream", "general") for cell in (show(base[kind]) if kind in base else [NONE] * 2)]


def _score_and_spread(
    part: Part, group: Group, kind: str, marks: Mapping[str, ByTask], columns: Sequence[str]
) -> list[str]:
    if kind not in marks:
        return [NONE, NONE]
    by_seed = [values_of(part, group, kind, [column]) for column in columns]
    seeds_spread = spread([fmean(fmean(values) for values in seed_marks.values()) for seed_marks in by_seed])
    extremes = f"{percent(seeds_spread.low)}–{percent(seeds_spread.high)}" if seeds_spread.seeds > 1 else NONE
    return [interval(mean_score(marks[kind], list(marks[kind]))), extremes]


def _tasks(part: Part, group: Group, rows: Sequence[Contender], scope: str) -> Table:
    titles = [f"{short_title(task.title)}, n = {task.n}" for task in group.tasks]
    table = Table(f"Task by task: {scope}right answers in %, mean over seeds", ("method", *titles))
    for contender in (None, *rows):
        columns = [BASE] if contender is None else part.columns_of(contender)
        title = "base" if contender is None else contender.title
        if not columns:
            table.add(title, *([MISSING if contender is None else _why_missing(part, contender)] * len(titles)))
            continue
        cells = [fmean(task.scores[column].score for column in columns) for task in group.tasks]
        table.add(title, *map(percent, cells))
    return table


# -- tests -------------------------------------------------------------------------------------------------------


def _tests(collected: Collected, part: Part, group: Group, rows: Sequence[Contender], scope: str) -> Table:
    rival = next((c for c in rows if c.name == collected.experiment.rival), None)
    against = [("base", [BASE])]
    if rival is not None and part.columns_of(rival):
        against.append((rival.title, part.columns_of(rival)))
    table = Table(
        f"Differences on the same questions: {scope}points with 95 % intervals (paired bootstrap over items, mean "
        "over seeds); p is McNemar's exact one after Holm's correction for all tests of its kind, the largest over "
        "the seeds; in brackets the difference that so many questions would show four times in five, before the "
        "correction",
        ("method", "kind", *(text for name, _ in against for text in (f"to {name}", "p"))),
    )
    for contender in rows:
        columns = part.columns_of(contender)
        for kind in kinds_of(group) if columns else ():
            cells: list[str] = []
            for _, others in against:
                cells += _difference(part, group, kind, columns, others)
            table.add(contender.title, kind, *cells)
    return table


def _difference(part: Part, group: Group, kind: str, columns: Sequence[str], others: Sequence[str]) -> list[str]:
    if list(columns) == list(others):
        return [NONE, NONE]
    if list(others) != [BASE]:
        # Only seeds that both have, so that a difference between seeds is not taken for one between methods.
        seeds = {part.columns[column].seed for column in columns} & {part.columns[column].seed for column in others}
        columns = [column for column in columns if part.columns[column].seed in seeds]
        others = [column for column in others if part.columns[column].seed in seeds]
        if not seeds:
            return [NONE, NONE]
    marks, other_marks = values_of(part, group, kind, columns), values_of(part, group, kind, others)
    tests = [c for c in group.kinds[kind].comparisons if c.first in columns and c.second in others]
    return [signed(difference(marks, other_marks, list(marks))), chance(tests)]


# -- what the gate does ------------------------------------------------------------------------------------------


def _distances(part: Part, group: Group, rows: Sequence[Contender], scope: str) -> Table:
    table = Table(
        f"How far from the base: {scope}KL(base ‖ adapter) in nats per token, share of all tokens of the prompts past "
        "LoRA in %, and AUC of general against trained prompts; mean over seeds",
        ("method", "KL downstream", "KL general", "past LoRA downstream", "past LoRA general", "AUC"),
    )
    for contender in rows:
        columns = part.columns_of(contender)
        if not columns:
            continue
        kl = [_mean([group.kinds[kind].kl.get(column) for column in columns]) for kind in kinds_of(group)]
        tasks = [[task for task in group.tasks if task.kind == kind] for kind in kinds_of(group)]
        past = [_mean([_past(part, each, column) for column in columns]) for each in tasks]
        auc = [group.auc[column][1] for column in columns if column in group.auc]
        gated = len(auc) == len(columns)
        table.add(
            contender.title,
            *(NONE if value is None else f"{value:.3f}" for value in kl),
            *(NONE if value is None or not gated else percent(value) for value in past),
            f"{fmean(auc):.4f}" if gated else NONE,
        )
    return table


def _bypassed(part: Part, group: Group, rows: Sequence[Contender], scope: str) -> Table:
    table = Table(
        f"Past LoRA task by task: {scope}share of the prompts that bypasses LoRA in %, mean over seeds",
        ("method", *(short_title(task.title) for task in group.tasks)),
    )
    for contender in rows:
        columns = [column for column in part.columns_of(contender) if column in group.auc]
        if columns:
            shares = [_mean([_past(part, [task], column) for column in columns]) for task in group.tasks]
            table.add(contender.title, *(NONE if share is None else percent(share) for share in shares))
    return table


def _past(part: Part, tasks: Sequence[TaskScores], column: str) -> float | None:
    """The mean share of the prompts past LoRA."""
    shares = [
        fmean(sample["answers"][column]["identity"])
        for task in tasks
        for sample in solved_samples(part.evaluation.samples[task.name])
        if sample["answers"][column].get("identity")
    ]
    return fmean(shares) if shares else None


def _mean(values: Sequence[Score | float | None]) -> float | None:
    numbers = [value.score if isinstance(value, Score) else value for value in values if value is not None]
    return fmean(numbers) if len(numbers) == len(values) else None


# -- rates, costs, single items ----------------------------------------------------------------------------------


def _rates(part: Part, group: Group, rows: Sequence[Contender], scope: str) -> Table:
    table = Table(f"Every rate: {scope}in %, mean over seeds", ("method", "rate", "seeds", "downstream", "general"))
    for contender in rows:
        cells = {column: cell for column, cell in part.columns.items() if cell.contender.name == contender.name}
        for rate in sorted({cell.rate for cell in cells.values()}):
            columns = [column for column, cell in cells.items() if cell.rate == rate]
            means = [
                percent(fmean(fmean(v) for v in values_of(part, group, kind, columns).values()))
                for kind in kinds_of(group)
            ]
            chosen = part.chosen.get(contender.name) == rate
            table.add(contender.title, f"{rate:g}", str(len(columns)), *means, bold=chosen)
    return table


def _overhead(collected: Collected) -> Table:
    table = Table(
        "What a method costs: trained parameters, seconds per training step, and peak memory "
        "(allocated on a GPU, resident of the whole process on a CPU), on the machine where it was trained, with "
        "whatever else ran there",
        ("method", "parameters", "seconds per step", "× LoRA", "memory"),
    )
    costs: dict[str, tuple[int, float, int | None]] = {}
    for contender in collected.experiment.contenders:
        if trainings := collected.trainings_of(contender):
            seconds = fmean(training["seconds"] / max(1, training["steps"]) for training in trainings)
            peaks = [training["peak_memory"] for training in trainings if training["peak_memory"] is not None]
            costs[contender.name] = (trainings[0]["parameters"], seconds, max(peaks, default=None))
    for contender in collected.experiment.contenders:
        if contender.name not in costs:
            table.add(contender.title, MISSING, "", "", "")
            continue
        parameters, seconds, peak = costs[contender.name]
        ratio_ = f"{seconds / costs['lora'][1]:.2f}" if "lora" in costs else NONE
        memory = NONE if peak is None else size(peak)
        table.add(contender.title, f"{parameters:,}", f"{seconds:.2f}", ratio_, memory)
    return table


def cases(collected: Collected, at_most: int) -> list[Table]:
    """Single general questions on which the variants differ most, with all answers."""
    result = []
    for part in collected.parts:
        columns = {BASE: "base"} | {
            column: cell.contender.title for column, cell in part.columns.items() if " at " not in column
        }
        for task in part.evaluation.tasks:
            if task.kind != "general":
                continue
            samples = [
                sample for sample in solved_samples(part.evaluation.samples[task.name]) if _telling(sample, columns)
            ]
            for sample in samples[:at_most]:
                result.append(_case(part, task, sample, columns))
    return result


def _telling(sample: Sample, columns: Mapping[str, str]) -> bool:
    """Whether the base is right and some variant is not."""
    marks = [sample["answers"][column]["mark"] for column in columns]
    return bool(marks[0]) and not all(marks)


def _case(part: Part, task: Any, sample: Sample, columns: Mapping[str, str]) -> Table:
    question = " ".join(asked(task.items[sample["id"]]).split())
    table = Table(f"{task.title}: {question}", ("method", "what", "right", "past LoRA by block"))
    for column, title in columns.items():
        answer = sample["answers"][column]
        shares = " ".join(f"{share:.0%}" for share in answer.get("identity") or ())
        text = " ".join(str(answer.get("text", answer.get("chosen", ""))).split())
        table.add(title, text, "yes" if answer["mark"] else "no", shares)
    return table


# -- cells -------------------------------------------------------------------------------------------------------


def points(score: Score) -> str:
    """A difference in points with its interval."""
    return f"{percent(score.score)} ({percent(score.low)} to {percent(score.high)})"


def chance(tests: Sequence[Comparison]) -> str:
    """The largest p of some tests and, where it is not significant, what difference would be; none is claimed where
    there is no test.
    """
    if not tests:
        return NONE
    worst = max(tests, key=lambda test: test.p)
    if worst.p < LEVEL:
        return "< 0.0001" if worst.p < 1e-4 else f"{worst.p:.2g}"
    would = "none" if worst.detectable is None else percent(worst.detectable)
    return f"{worst.p:.2g}, not significant ({would})"


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:.1f}"


__all__ = ["cases", "key_of", "notes", "tables"]
