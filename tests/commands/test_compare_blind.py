# SPDX-License-Identifier: Apache-2.0
"""`compare --blind` as a person calls it."""

from __future__ import annotations

import json
import re

import pytest
from typer.testing import CliRunner

from slim_core.cli import app
from slim_core.commands import compare_blind
from slim_core.webui.state import ballot
from tests.commands.test_compare import sources
from tests.inference.conftest import folders


__all__ = ["folders"]

ORDERS = [["slim", "base", "lora"], ["lora", "slim", "base"], ["base", "lora", "slim"]]
LABELS = {"base": "Base", "lora": "LoRA", "slim": "SLIM"}
NAMES = re.compile(r"\b(?:Base|LoRA|SLIM|rank|float32)\b")


@pytest.fixture
def order(monkeypatch, request):
    """Who stands where."""
    chosen = getattr(request, "param", ORDERS[0])
    monkeypatch.setattr(ballot.DICE, "sample", lambda names, count: [name for name in chosen if name in names])
    return chosen


def ask(monkeypatch, folders, *arguments, said=None):
    """The command's result; `said` is what a person types at a terminal, None where there is none."""
    monkeypatch.setattr(compare_blind, "at_terminal", lambda: said is not None)
    words = [
        "compare",
        "What is the capital of Peru?",
        *map(str, sources(folders)),
        "--max-new-tokens",
        "5",
        "--blind",
    ]
    return CliRunner().invoke(app, [*words, *arguments], input=said)


@pytest.mark.parametrize("order", ORDERS, indirect=True)
@pytest.mark.parametrize(("said", "place"), [("A\n", 0), ("b\n", 1), (" c \n", 2)])
def test_who_was_who_is_told_after_the_choice_and_not_before(monkeypatch, folders, order, said, place):
    result = ask(monkeypatch, folders, said=said)
    assert result.exit_code == 0, result.output
    before, _, after = result.stdout.partition("Which answer is the best? A, B, C, or - for no difference")
    assert not NAMES.search(before) and not re.search("tokens|/s|complete", before)
    assert re.findall(r"\b[ABC]\b", before.splitlines()[1]) == ["A", "B", "C"]
    who = ", ".join(f"{letter} is {LABELS[name]}" for letter, name in zip("ABC", order, strict=True))
    assert f"You chose {LABELS[order[place]]}: {who}." in after
    assert "5 tokens" in " ".join(after.split()) and "share that bypasses LoRA" in after


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("-\n", "You found no difference: A is SLIM, B is Base, C is LoRA."),
        ("D\nAB\n\nbase\nB\n", "You chose Base: A is SLIM, B is Base, C is LoRA."),
        ("", "A is SLIM, B is Base, C is LoRA."),
        (None, "A is SLIM, B is Base, C is LoRA."),
    ],
    ids=["no difference", "what is none of them", "the end of the input", "no terminal"],
)
def test_what_else_may_be_said(monkeypatch, folders, order, said, words):
    result = ask(monkeypatch, folders, said=said)
    assert result.exit_code == 0, result.output
    assert words in result.stdout
    assert ("You chose" in result.stdout) == words.startswith("You chose")
    assert result.stdout.count("Please type one of A, B, C or -.") == (3 if "D" in (said or "") else 0)


@pytest.mark.parametrize("order", ORDERS, indirect=True)
def test_json_has_the_order_and_asks_nothing(monkeypatch, folders, order):
    result = ask(monkeypatch, folders, "--json", said="A\n")
    report = json.loads(result.stdout)
    assert report["blind"] == {"order": dict(zip("ABC", order, strict=True)), "best": None}
    assert [answer["variant"] for answer in report["answers"]] == ["base", "lora", "slim"]


def test_without_the_flag_there_is_no_order(folders):
    words = ["compare", "Lima?", *map(str, sources(folders)), "--max-new-tokens", "3", "--json"]
    assert "blind" not in json.loads(CliRunner().invoke(app, words).stdout)


def test_two_answers_have_two_letters(monkeypatch, folders, order):
    monkeypatch.setattr(compare_blind, "at_terminal", lambda: False)
    words = [
        "compare",
        "Lima?",
        *map(str, sources(folders)[:4]),
        "--device",
        "cpu",
        "--max-new-tokens",
        "3",
        "--blind",
    ]
    result = CliRunner().invoke(app, words)
    assert "A is Base, B is LoRA." in result.stdout


def test_the_order_is_drawn_anew(monkeypatch, folders):
    drawn = {tuple(ballot.shuffled(["base", "lora", "slim"]).order) for _ in range(200)}
    assert len(drawn) == 6


REFUSED = [
    (["--blind", "--prompts", "some.txt"], "--blind asks which answer to one question is the best; leave"),
    (
        ["Lima?", "--blind", "--base", "BASE", "--device", "cpu"],
        "--blind has only one answer to choose from; name an",
    ),
]


@pytest.mark.parametrize(("arguments", "sentence"), REFUSED)
def test_what_cannot_be_voted_on_is_refused(folders, arguments, sentence):
    result = CliRunner().invoke(app, ["compare", *[str(folders.base) if x == "BASE" else x for x in arguments]])
    assert result.exit_code == 1 and sentence in " ".join(result.stderr.split()) and result.stdout == ""
