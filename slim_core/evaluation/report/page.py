# SPDX-License-Identifier: Apache-2.0
"""The report of an evaluation: tables, the plane, and single items with all answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from ...base.formatting import counted
from ...inference.types import kind_name
from ..metrics import SOLVES, comparison_sentence
from ..results import Evaluation
from ..summary import BASE, Group, KindSummary
from .items import items_of
from .markup import interval, page, paragraph, percent, plain_interval, signed, table
from .plane import VariantPoint, method_of, plane


SCORINGS = {
    "letters": "By letter: the likeliest label of the options that the prompt lists",
    "likelihood": "By likelihood: the likeliest text of the options",
    "written": "Written: the option, number or words that an answer has",
    "rules": "By rules: whether an answer has the form that was asked for",
    "captured": "Format capture: open questions answered in the trained form; lower is better",
    "loss": "Loss in nats per token; lower is better",
}
# What a higher score means, where it does not mean that more is solved.
MORE = {"captured": "falls into the trained form more often than"}
KINDS = {"downstream": "downstream (what was trained)", "general": "general (what the base knew before)"}


Points = Sequence[VariantPoint]


def report_page(evaluation: Evaluation, points: Callable[[Group], Points] | None = None) -> str:
    """The whole page.

    Args:
        evaluation: what it is about.
        points: the points of the plane; each variant's where nothing else is said.
    """
    return page("What was learned and what was forgotten", _parts(evaluation, points))


def _parts(evaluation: Evaluation, points: Callable[[Group], Points] | None) -> Iterator[str]:
    labels = evaluation.labels
    yield paragraph(
        "Scores are in % with 95 % intervals. All variants solved the same items, in one batch on one copy of the "
        "base. What is scored in different ways is never put into one table or mean. A difference that is not "
        "significant is not called one."
    )
    yield table(
        ("variant", "kind", "from", "details"),
        [
            (
                labels[p.respondent.column],
                kind_name(p.respondent.variant.kind),
                p.source,
                f"{p.respondent.variant.detail} {p.sha256[:12]}".strip(),
            )
            for p in evaluation.participants
        ],
        text=(2, 3),
    )
    for group in evaluation.groups:
        yield from _group(group, evaluation, labels, points)
    yield "<h2>Items</h2>"
    yield paragraph("Where the variants differ first. The result file has all items.", "dim")
    for task in evaluation.tasks:
        yield from items_of(task, evaluation.samples[task.name], labels)


def _group(
    group: Group, evaluation: Evaluation, labels: Mapping[str, str], points: Callable[[Group], Points] | None
) -> Iterator[str]:
    yield f"<h2>{SCORINGS[group.scoring]}</h2>"
    yield _scores(group, labels)
    yield from map(paragraph, notes(group))
    if group.scoring == "loss":
        yield _losses(group, labels)
    if {"downstream", "general"} <= group.kinds.keys() and group.scoring != "loss":
        yield "<h3>Learning and forgetting</h3>"
        yield plane(_points(group, evaluation) if points is None else points(group), labels.get(BASE, BASE))
        yield paragraph("Dashed: the base. A line joins the best points of one method.", "dim")
    for kind, summary in group.kinds.items():
        yield from _kind(kind, summary, labels, MORE.get(group.scoring, SOLVES))
    if group.auc:
        yield from _router(group, labels)
    if group.seeds:
        yield "<h3>Training seeds</h3>"
        yield table(
            ("method", "kind", "seeds", "mean", "lowest–highest", "standard deviation"),
            [
                (
                    evaluation.methods[method],
                    kind,
                    str(spread.seeds),
                    percent(spread.mean),
                    f"{percent(spread.low)}–{percent(spread.high)}",
                    "" if spread.deviation is None else percent(spread.deviation),
                )
                for method, kinds in group.seeds.items()
                for kind, spread in kinds.items()
            ],
        )
    if stages := evaluation.stages.get(group.scoring):
        yield "<h3>The adapters as stages of one training</h3>"
        yield table(
            ("average accuracy", "backward transfer", "forgetting"),
            [["" if value is None else f"{100 * value:+.1f}" for value in stages.values()]],
        )


def _scores(group: Group, labels: Mapping[str, str]) -> str:
    show = plain_interval if group.scoring == "loss" else interval
    rows = [
        (task.title, task.kind, str(task.n), *(show(task.scores[column]) for column in labels)) for task in group.tasks
    ]
    means = [
        (f"all {kind}", "", "", *(interval(standing.mean) for standing in summary.standings))
        for kind, summary in group.kinds.items()
        if len(summary.tasks) > 1 and summary.standings
    ]
    return table(("task", "kind", "n", *labels.values()), [*rows, *means], last=len(means))


def notes(group: Group) -> Iterator[str]:
    """Notes on how to read the scores."""
    for task in group.tasks:
        if task.left_out:
            items = task.n + task.left_out
            yield f"{task.title}: {task.left_out} of {items} items could not be solved and are left out."
        if task.unforgettable:
            reason = (
                "solves none of it"
                if task.chance is None
                else f"is not shown to beat guessing ({percent(task.chance)} %)"
            )
            yield f"{task.title}: the base {reason}, so this task cannot show forgetting."
    if (sentence := same_sentence([group])) is not None:
        yield sentence


def same_sentence(groups: Sequence[Group]) -> str | None:
    """What an interval of no width means, where a variant has the base's mark for every question of a kind; None
    where none has.
    """
    sizes = [
        comparison.n
        for group in groups
        for summary in group.kinds.values()
        for comparison in summary.comparisons
        if BASE in (comparison.first, comparison.second)
        and comparison.test.only_first == comparison.test.only_second == 0
    ]
    if not sizes:
        return None
    return (
        "An interval without a width means that every question has the base's mark; of others like them up to "
        f"{percent(min(1.0, 3 / min(sizes)))} % may not (the rule of three, with {counted(min(sizes), 'question')})."
    )


def _losses(group: Group, labels: Mapping[str, str]) -> str:
    rows = [
        (
            task.title,
            *("" if column not in task.changes else plain_interval(task.changes[column], True) for column in labels),
        )
        for task in group.tasks
    ]
    return "<h3>Rise of the loss over the base's</h3>" + table(("text", *labels.values()), rows)


def _points(group: Group, evaluation: Evaluation) -> list[VariantPoint]:
    kept = {standing.variant: standing.mean for standing in group.kinds["general"].standings}
    learned = {standing.variant: standing.mean for standing in group.kinds["downstream"].standings}
    columns = {p.respondent.column: p for p in evaluation.participants}
    return [
        VariantPoint(p.label, kept[column], learned[column], p.method or method_of(p.label))
        for column, p in columns.items()
    ]


def _kind(kind: str, summary: KindSummary, labels: Mapping[str, str], verb: str) -> Iterator[str]:
    if not summary.standings and not summary.kl:
        return
    yield f"<h3>{KINDS[kind].capitalize()}</h3>"
    standings = {standing.variant: standing for standing in summary.standings}
    rows = []
    for column, label in labels.items():
        standing, kl = standings.get(column), summary.kl.get(column)
        retention = None if standing is None or kind != "general" else standing.retention
        rows.append(
            (
                label,
                "" if standing is None else interval(standing.mean),
                "" if standing is None or standing.change is None else signed(standing.change),
                "" if retention is None else interval(retention),
                "" if kl is None else plain_interval(kl),
            )
        )
    head = ("variant", "mean", "change to the base, points", "retention, %", "KL(base ‖ variant), nats per token")
    # A loss has no mean, and what was learned no retention.
    absent = {1, 2, 3} if not summary.standings else {3} if kind == "downstream" else set()
    named, *filled = ([cell for place, cell in enumerate(row) if place not in absent] for row in (head, *rows))
    yield table(named, filled)
    if summary.comparisons:
        sentences = [comparison_sentence(c, labels[c.first], labels[c.second], verb) for c in summary.comparisons]
        yield (
            "<details><summary>Every two variants on the same items: McNemar's exact test, with Holm's correction"
            "</summary>"
        )
        yield table(
            ("compared", "difference, points", "only first", "only second", "p", "in words"),
            [
                (
                    f"{labels[c.first]} – {labels[c.second]}",
                    signed(c.gap),
                    str(c.test.only_first),
                    str(c.test.only_second),
                    f"{c.p:.2g}",
                    sentence,
                )
                for c, sentence in zip(summary.comparisons, sentences, strict=True)
            ],
            text=(5,),
        )
        yield "</details>"


def _router(group: Group, labels: Mapping[str, str]) -> Iterator[str]:
    yield "<h3>Whether the router distinguishes general from trained prompts</h3>"
    yield paragraph("Area under the ROC curve of the prompts' shares past LoRA: 1 is perfect, 0.5 is chance.", "dim")
    blocks = max(len(by_block) for by_block, _ in group.auc.values())
    yield table(
        ("variant", *(f"block {number}" for number in range(blocks)), "all"),
        [
            (labels[column], *(f"{auc:.3f}" for auc in by_block), f"{overall:.3f}")
            for column, (by_block, overall) in group.auc.items()
        ],
    )
