# SPDX-License-Identifier: Apache-2.0
"""The blind vote: what is sent before it says nothing of who answered, and what is told after it."""

import json
import re

import pytest

from slim_core.webui.limits import LimitError
from slim_core.webui.state.ballot import TIE, Ballot, shuffled
from slim_core.webui.state.session import Session
from slim_core.webui.wire import blind, exchange, views
from tests.ui.scripted import FOREIGN
from tests.webui.conftest import ask


ORDER = ("slim", "base", "lora")


@pytest.fixture
def same_words(engine, monkeypatch):
    """Everybody says the same, so that a name that is sent is no part of an answer."""
    monkeypatch.setattr(type(engine), "words", lambda self, row, sampling: ["Same", " words"])


@pytest.fixture
def voting(backend):
    """A turn on which nobody has voted; SLIM stands as A, the base as B, LoRA as C."""
    session = Session()
    turn = ask(session, backend, f"{FOREIGN} one")
    session.blind, turn.ballot = True, Ballot(ORDER)
    return session


def sent(session, backend):
    """All that the page gets of a conversation."""
    return {
        "transcript": views.transcript(session, backend),
        "status": views.status(session),
        "routing": {k: v for k, v in views.routing(session, backend).items() if k != "columns"} | {"column": ""},
        "drift": views.drift(session, backend),
    }


@pytest.mark.parametrize("view", ["plain", "differences", "routing"])
def test_nothing_that_is_sent_before_the_vote_says_who_answered(voting, backend, same_words, view):
    session = Session()
    turn = ask(session, backend, "Hello")
    session.blind, turn.ballot, session.view = True, Ballot(ORDER), view
    text = json.dumps(sent(session, backend))
    rest = text.replace(blind.VOTE_FIRST, "")
    assert re.findall(r"\b(base|lora|slim)\b", rest, re.IGNORECASE) == []
    answers = views.transcript(session, backend)["turns"][0]["answers"]
    assert list(answers) == ["A", "B", "C"]
    # All three are alike but for their letters.
    assert len({json.dumps(answer | {"label": ""}) for answer in answers.values()}) == 1
    assert views.status(session) == "A: done, 2 tokens. B: done, 2 tokens. C: done, 2 tokens."


def test_letters_stand_for_columns(voting, backend):
    shown = views.transcript(voting, backend)
    assert [column["label"] for column in shown["columns"]] == ["A", "B", "C"]
    assert shown["gates"] == {} and shown["metered"] is False
    turn = voting.turns[0]
    for letter, name in zip("ABC", ORDER, strict=True):
        assert shown["turns"][0]["answers"][letter]["text"] == turn.answers[name].step.text
        assert blind.column_of(voting, backend, letter) == name
    assert blind.column_of(voting, backend, "slim") is None and blind.column_of(voting, backend, 3) == 3
    voting.blind = False
    assert blind.column_of(voting, backend, "slim") == "slim"


def test_after_the_vote_names_are_told(voting, backend):
    turn = voting.turns[0]
    assert blind.vote(turn) == {"letters": ["A", "B", "C"], "ready": True, "sentence": ""}
    assert turn.ballot.vote("C") and not turn.ballot.vote("A")
    shown = views.transcript(voting, backend)["turns"][0]
    assert [answer["label"] for answer in shown["answers"].values()] == ["B: Base", "C: LoRA", "A: SLIM"]
    assert shown["vote"]["sentence"] == "You voted for LoRA: A is SLIM, B is Base, C is LoRA."
    assert shown["verdicts"][0]["kind"] == "unlike"
    assert views.routing(voting, backend)["data"] is not None and views.drift(voting, backend)["data"] is not None
    assert views.status(voting).startswith("Base: done")


@pytest.mark.parametrize(
    ("choice", "best"),
    [("A", "slim"), ("B", "base"), (TIE, TIE), ("D", None), ("AB", None), ("", None), (None, None), (0, None)],
)
def test_what_is_a_vote(choice, best):
    ballot = Ballot(ORDER)
    assert ballot.vote(choice) is (best is not None)
    assert ballot.best == best and ballot.hides is (best is None)


def test_every_order_comes():
    orders = {shuffled(["base", "lora", "slim"]).order for _ in range(500)}
    assert len(orders) == 6 and {tuple(sorted(order)) for order in orders} == {("base", "lora", "slim")}
    assert shuffled(["base"]) is None


def test_the_tally_counts_votes_of_this_and_of_earlier_conversations(voting, backend):
    assert blind.tally(voting, backend) == ""
    voting.turns[0].ballot.vote("A")
    second = ask(voting, backend, "two")
    second.ballot = Ballot(ORDER, TIE)
    assert blind.tally(voting, backend) == "Your votes: Base 0, LoRA 0, SLIM 1, no difference 1."
    voting.clear()
    third = ask(voting, backend, "three")
    third.ballot = Ballot(ORDER, "lora")
    assert blind.tally(voting, backend) == "Your votes: Base 0, LoRA 1, SLIM 1, no difference 1."
    assert json.loads(exchange.dump(voting, backend))["votes"] == {"SLIM": 1, "tie": 1, "LoRA": 1}
    voting.renew(7)
    assert blind.tally(voting, backend) == ""


def test_a_vote_is_in_the_file_and_comes_back(voting, backend, tmp_path):
    voting.turns[0].ballot.vote("A")
    ask(voting, backend, "without a vote")
    path = tmp_path / "c.json"
    path.write_text(exchange.dump(voting, backend), encoding="utf-8")
    loaded = {variant.name: variant for variant in backend.variants}
    turns, _ = exchange.load(path, "scripted", loaded, 10**8, iter(range(9)).__next__)
    assert [turn.ballot for turn in turns] == [Ballot(ORDER, "slim"), None]


@pytest.mark.parametrize(
    "vote",
    [
        "A",
        {"order": ["slim"], "best": "slim"},
        {"order": ["slim", "base", "lora"], "best": None},
        {"order": ["slim", "base", "lora"], "best": "me"},
        {"order": ["slim", "slim", "lora"], "best": "slim"},
        {"order": [["slim"], "base", "lora"], "best": "base"},
        {"order": ["slim", "base", "lora"], "best": ["slim"]},
        {"best": "slim"},
    ],
)
def test_a_vote_in_a_file_that_is_none(vote):
    with pytest.raises(LimitError, match="A vote in the conversation must name the columns that answered"):
        blind.load(vote, dict.fromkeys(ORDER))


def test_who_shows_the_names_has_no_vote(voting):
    blind.reveal(voting)
    assert voting.turns[0].ballot is None


def test_turns_of_before_stand_in_their_own_order(backend):
    session = Session()
    ask(session, backend, "one")
    session.blind = True
    shown = views.transcript(session, backend)["turns"][0]
    assert [(letter, answer["label"]) for letter, answer in shown["answers"].items()] == [
        ("A", "A: Base"),
        ("B", "B: LoRA"),
        ("C", "C: SLIM"),
    ]
    assert shown["vote"] is None
