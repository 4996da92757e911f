# SPDX-License-Identifier: Apache-2.0
"""What the frontiers of methods say, by hand: two tasks of ten questions, and adapters that solve so many of each."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from slim_core.demo.trial import Setup
from slim_core.evaluation.statistics import Score
from slim_core.paper.frontier import frontier_sentence, frontier_table, frontiers_of, points_of, razor_sentence
from slim_core.paper.runs import Cell, Contender
from slim_core.paper.tables import chance


SLIM = Contender("slim", "SLIM", Setup("slim"))
OTHER_SLIM = Contender("slim-eaft", "SLIM, EAFT", Setup("slim"))
LORA = Contender("lora", "LoRA", Setup("lora"))
HALF, QUARTER = (Contender(f"x{n}", f"LoRA × {n}", Setup("lora"), line="LoRA, rewound") for n in (0.5, 0.25))
OFT = Contender("oft", "OFT", Setup("oft"))
ALL = {contender.name: contender for contender in (SLIM, OTHER_SLIM, LORA, HALF, QUARTER, OFT)}
# Solved downstream, solved general, and KL in domain, by contender, rate and seed.
SOLVED = {
    ("slim", 0.1, 1): (9, 10, 8.0),
    ("slim", 0.1, 2): (9, 10, 8.0),
    ("slim-eaft", 0.1, 1): (10, 10, 8.0),
    ("lora", 0.1, 1): (9, 2, 7.0),
    ("lora", 0.01, 1): (7, 8, 2.0),
    ("x0.5", 0.1, 1): (9, 4, 6.0),
    ("x0.25", 0.1, 1): (5, 8, 1.0),
    ("oft", 0.1, 1): (8, 10, 3.0),
}
ROWS = tuple(ALL.values())


@pytest.fixture
def measured():
    columns = {f"{name} at {rate}@{seed}": Cell(ALL[name], rate, seed) for name, rate, seed in SOLVED}
    counted = dict(zip(columns, SOLVED.values(), strict=True)) | {"base": (3, 10, 0.0)}
    samples = {
        task: [
            {"id": i, "answers": {name: {"mark": float(i < counts[place])} for name, counts in counted.items()}}
            for i in range(10)
        ]
        for place, task in enumerate(("new", "old"))
    }
    kl = {name: Score(counted[name][2], 0, 9) for name in columns}
    tasks = [SimpleNamespace(name="new", kind="downstream"), SimpleNamespace(name="old", kind="general")]
    group = SimpleNamespace(tasks=tasks, kinds={"downstream": SimpleNamespace(kl=kl), "general": None})
    return SimpleNamespace(columns=columns, evaluation=SimpleNamespace(samples=samples)), group


def test_a_point_for_each_rate_and_the_seeds_together(measured):
    points = {point.name: point for point in points_of(*measured, ROWS)}
    assert list(points)[:2] == ["Base", "SLIM, 0.1"] and len(points) == len(SOLVED)  # the base, and two seeds in one
    assert (points["LoRA, 0.01"].learned.score, points["LoRA, 0.01"].kept.score) == (0.7, 0.8)
    assert points["LoRA × 0.5, 0.1"].line == points["LoRA × 0.25, 0.1"].line == "LoRA, rewound"


def test_others_are_read_off_straight_lines_at_the_levels_of_slim(measured):
    frontiers = frontiers_of(*measured, ROWS)
    assert frontiers.most == pytest.approx({"SLIM": 0.9, "LoRA": 0.9, "LoRA, rewound": 0.9, "OFT": 0.8})
    at_most, less, least = frontiers.levels
    assert [level.learned for level in frontiers.levels] == pytest.approx([0.9, 0.89, 0.88])
    assert at_most.kept == pytest.approx({"SLIM": 1.0, "LoRA": 0.2, "LoRA, rewound": 0.4, "OFT": None})
    # From (0.9, 0.2) to (0.7, 0.8), and from (0.9, 0.4) to (0.5, 0.8).
    assert less.kept["LoRA"] == pytest.approx(0.23) and least.kept["LoRA"] == pytest.approx(0.26)
    assert least.kept["LoRA, rewound"] == pytest.approx(0.42)
    for level in frontiers.levels:
        for name, lead in level.leads.items():
            kept = level.kept[name]
            assert (lead is None) == (kept is None) and (lead is None or lead.score == pytest.approx(1 - kept))
    table = frontier_table(frontiers, "")
    assert table.rows[0][:3] == ("SLIM", "90.0", "100.0") and table.bold == {0}
    assert table.rows[3] == ("OFT", "80.0", *["–"] * 6)


def test_only_what_is_shown_is_said(measured):
    part, group = measured
    sentence = frontier_sentence(frontiers_of(part, group, ROWS))
    assert sentence.startswith("At 90.0 % learned, SLIM's frontier lies above those of 2 of the 2 other methods")
    # One that learns as much and keeps nearly as much.
    for sample in part.evaluation.samples["old"]:
        sample["answers"]["lora at 0.1@1"]["mark"] = float(sample["id"] < 9)
    for sample in part.evaluation.samples["new"]:
        sample["answers"]["oft at 0.1@1"]["mark"] = 1.0
    sentence = frontier_sentence(frontiers_of(part, group, ROWS))
    assert sentence.startswith("SLIM learns 90.0 %, and OFT 100.0 %. ")
    assert (
        "above those of 1 of the 3 other methods that learn so much; not shown is that it lies above LoRA and OFT."
        in (sentence)
    )


def test_that_no_other_learns_so_much_is_said(measured):
    part, group = measured
    for sample in part.evaluation.samples["new"]:
        for name in ("lora at 0.1@1", "x0.5 at 0.1@1"):
            sample["answers"][name]["mark"] = float(sample["id"] < 7)
    sentence = frontier_sentence(frontiers_of(part, group, ROWS))
    assert sentence == " ".join(f"No other method learns {level} %." for level in ("90.0", "89.0", "88.0"))


def test_there_is_nothing_to_say_without_slim_or_without_others(measured):
    part, group = measured
    for names in (("slim",), ("lora", "oft")):
        kept = {name: cell for name, cell in part.columns.items() if cell.contender.name in names}
        assert frontiers_of(SimpleNamespace(columns=kept, evaluation=part.evaluation), group, ROWS) is None


def test_the_razor_compares_adapters_of_like_distance(measured):
    part, group = measured
    # Drops of 8, 2, 6, 2 and 0 of ten, at 7, 2, 6, 1 and 3 nats: ranks 5, 2.5, 4, 2.5, 1 and 5, 2, 4, 1, 3.
    sentence = razor_sentence(part, group, ROWS)
    assert "Of the 5 other adapters, this KL and the drop have a rank correlation of 0.67." in sentence
    assert "SLIM, 0.1, 8.00 nats from the base, drops by 0.0 points; LoRA, 0.1, the nearest" in sentence
    assert sentence.endswith("with 7.00 nats, by 80.0.") and "EAFT" not in sentence
    few = {name: cell for name, cell in part.columns.items() if cell.contender.name in ("slim", "lora")}
    assert razor_sentence(SimpleNamespace(columns=few, evaluation=part.evaluation), group, ROWS) is None


def test_a_difference_that_is_not_significant_says_which_would_be():
    def tests(*found):
        return [SimpleNamespace(p=p, detectable=least) for p, least in found]

    assert chance(tests((0.01, 0.02), (1e-9, 0.02))) == "0.01" and chance(tests((1e-9, None))) == "< 0.0001"
    assert chance(tests((0.01, 0.02), (0.26, 0.031))) == "0.26, not significant (3.1)"
    assert chance(tests((1.0, None))) == "1, not significant (none)" and chance([]) == "–"
