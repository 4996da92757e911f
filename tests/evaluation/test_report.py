# SPDX-License-Identifier: Apache-2.0
"""What the samples say, summed up by hand and by the program, and how the page shows it."""

from __future__ import annotations

import re

import pytest

from slim_core.evaluation.marking import Expected
from slim_core.evaluation.report.markup import signed
from slim_core.evaluation.report.page import notes
from slim_core.evaluation.report.plane import LETTER, WIDTH, VariantPoint, frontier, method_of, plane
from slim_core.evaluation.statistics import Score, wilson
from slim_core.evaluation.summary import summarise
from slim_core.evaluation.tasks import Question, Request, Task, Text
from slim_core.inference import Passage


def choice(name, kind, n, metric="acc"):
    item = Question((Passage("q", " a"), Passage("q", " b")), (0,), ("a", "b"))
    return Task(name, name.title(), kind, "likelihood", (item,) * n, metric)


def sample(number, marks, kl=(0.0, 0.0), identity=None):
    answers = {
        column: {"mark": float(mark), "kl": far} | ({"identity": identity} if identity and column == "slim" else {})
        for column, mark, far in zip(("base", "slim"), marks, kl, strict=True)
    }
    return {"id": number, "answers": answers}


def test_a_summary_by_hand():
    tasks = [choice("new", "downstream", 4), choice("old", "general", 4)]
    samples = {
        "new": [sample(i, (0, 1), (0.0, 2.0), [0.1, 0.5]) for i in range(3)] + [{"id": 3, "error": "Too long."}],
        "old": [sample(i, (1, i != 0), (0.0, 0.1), [0.9, 0.5]) for i in range(4)],
    }
    (group,) = summarise(tasks, samples, ["base", "slim"])
    new, old = group.tasks
    assert (new.n, new.left_out, old.n, old.left_out) == (3, 1, 4, 0)
    assert new.scores == {"base": wilson(0, 3), "slim": wilson(3, 3)} and old.scores["slim"] == wilson(3, 4)
    base, slim = group.kinds["general"].standings
    assert (base.retention, slim.retention.score, slim.change.score) == (None, 0.75, -0.25)
    assert group.kinds["downstream"].kl["slim"].score == 2.0
    assert group.kinds["general"].kl["slim"].score == pytest.approx(0.1)
    # Every general prompt sends more past LoRA in the first block; in the second all are alike.
    assert group.auc == {"slim": ([1.0, 0.5], 1.0)}
    assert list(notes(group)) == ["New: 1 of 4 items could not be solved and are left out."]


def written(kind, scoring, n):
    return Task("old", "Old", kind, scoring, (Request("q", Expected(("a",))),) * n)


@pytest.mark.parametrize(
    ("task", "marks", "sentence"),
    [
        # Guessing gives one half. Four of four are more than that (Wilson's interval begins at 0.51), three are not.
        (choice("old", "general", 4), "1111", None),
        (choice("old", "general", 4), "1110", "the base is not shown to beat guessing (50.0 %), so this task cannot"),
        (choice("old", "downstream", 4), "0000", None),
        (written("general", "written", 4), "0000", "solves none of it"),
        (written("general", "written", 6), "000000", "solves none of it"),
        (written("general", "written", 4), "0001", None),
        (written("general", "captured", 4), "0000", None),
    ],
)
def test_where_nothing_can_be_forgotten(task, marks, sentence):
    samples = {"old": [sample(i, (int(mark), 1)) for i, mark in enumerate(marks)]}
    (group,) = summarise([task], samples, ["base", "slim"])
    sentences = [said for said in notes(group) if "without a width" not in said]
    assert len(sentences) == (sentence is not None) and (sentence is None or sentence in sentences[0])


@pytest.mark.parametrize(("right", "said"), [((1, 1), True), ((1, 0), False)])
def test_an_interval_without_a_width_is_explained(right, said):
    """Twenty items, all but one of which have the base's mark for sure."""
    samples = {"old": [sample(i, (1, 1) if i else right) for i in range(20)]}
    (group,) = summarise([choice("old", "general", 20)], samples, ["base", "slim"])
    (standing,) = [s for s in group.kinds["general"].standings if s.variant == "slim"]
    assert (standing.retention.low == standing.retention.high) == said
    sentence = (
        "An interval without a width means that every question has the base's mark; of others like them up to 15.0 % "
        "may not (the rule of three, with 20 questions)."
    )
    assert list(notes(group)) == [sentence] * said


def test_what_is_scored_in_different_ways_is_never_averaged():
    letters = Task("l", "L", "general", "letters", choice("l", "general", 2).items)
    written = Task("w", "W", "general", "written", (Request("q", Expected(("a",))),) * 2)
    lost = Task("t", "T", "general", "loss", (Text(Passage("", "a")),) * 2)
    samples = {
        "l": [sample(0, (1, 1)), sample(1, (1, 1))],
        "w": [sample(0, (0, 0)), sample(1, (0, 0))],
        "t": [
            {"id": i, "answers": {"base": {"loss": 2.0 + i, "kl": 0.0}, "slim": {"loss": 2.5 + i, "kl": 0.3}}}
            for i in range(2)
        ],
    }
    groups = summarise([letters, written, lost], samples, ["base", "slim"])
    assert [group.scoring for group in groups] == ["letters", "written", "loss"]
    assert [group.kinds["general"].standings[0].mean.score for group in groups[:2]] == [1.0, 0.0]
    loss = groups[2]
    assert loss.tasks[0].scores["slim"].score == pytest.approx(3.0)
    assert loss.tasks[0].changes["slim"] == pytest.approx((0.5, 0.5, 0.5))
    assert loss.kinds["general"].standings == () and loss.kinds["general"].comparisons == ()


def point(name, kept, learned):
    scores = (Score(share, share - 0.01, share + 0.01) for share in (kept, learned))
    return VariantPoint(name, *scores, method_of(name))


def test_the_frontier_of_a_method():
    points = [point("a", 0.5, 0.9), point("b", 0.7, 0.8), point("c", 0.6, 0.7), point("d", 0.9, 0.3)]
    assert [p.name for p in frontier(points)] == ["a", "b", "d"]
    assert [p.name for p in frontier([point("e", 0.5, 0.5), point("f", 0.5, 0.6)])] == ["f"]


@pytest.mark.parametrize(
    ("name", "method"),
    [("slim", "slim"), ("slim@3", "slim"), ("slim@3, gate 0.5", "slim"), ("slim, gate 0", "slim"), ("a@b", "a@b")],
)
def test_the_method_of_a_variant(name, method):
    assert method_of(name) == method


def test_the_plane_has_everybody_and_the_base_dashed():
    points = [
        point("Base", 0.9, 0.2),
        point("<lora>", 0.3, 0.9),
        point("slim@1", 0.9, 0.8),
        point("slim@2", 0.8, 0.85),
    ]
    drawn = plane(points, "Base")
    assert drawn.count("<rect") == 4 + 3 and drawn.count("stroke-dasharray") == 1
    assert drawn.count("<polyline") == 1  # slim has two points, of which neither is better in both
    assert "&lt;lora&gt;" in drawn and "<lora>" not in drawn
    assert "nan" not in plane([point("Base", 1.0, 1.0)], "Base")


def labels(drawn):
    """Left end, right end and baseline of each name that is written into the plane."""
    found = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" text-anchor="(start|end)">([^<]*[a-z][^<]*)<', drawn)
    ends = (
        (float(x), (1 if anchor == "start" else -1) * LETTER * len(name), float(y)) for x, y, anchor, name in found
    )
    return [(*sorted((x, x + width)), y) for x, width, y in ends]


def test_no_name_in_the_plane_covers_another_or_leaves_it():
    crowd = [point(f"a method with a long name, number {i}", 0.9, 0.5 + 0.002 * i) for i in range(20)]
    drawn = plane([*crowd, point("far away", 0.2, 0.1)], "Base")
    written = labels(drawn)
    assert 2 <= len(written) < 20
    assert all(left >= 0 and right <= WIDTH for left, right, _ in written)
    for i, (left, right, y) in enumerate(written):
        assert not any(left < b and a < right and abs(y - other) < 10 for a, b, other in written[:i])
    legend = drawn[drawn.index("<ul") :]
    assert all(f"number {i}</li>" in legend for i in range(20)) and "far away</li>" in legend


def test_no_two_methods_look_the_same():
    drawn = plane([point(f"m{i}", 0.5, 0.01 * i) for i in range(20)], "Base")
    signs = re.findall(r'<rect [^>]*(rx="\d" fill="[^"]*" stroke="[^"]*")', drawn[drawn.index("<ul") :])
    assert len(signs) == len(set(signs)) == 20


def test_a_difference_of_nothing_has_no_minus():
    assert signed(Score(0.0, -0.0001, 0.1)) == "+0.0 (+0.0 to +10.0)"
    assert signed(Score(-0.1004, -0.2, -0.0006)) == "-10.0 (-20.0 to -0.1)"
