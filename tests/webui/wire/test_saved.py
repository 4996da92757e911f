# SPDX-License-Identifier: Apache-2.0
"""What the browser keeps of a conversation, and what of it comes back."""

import itertools
import json

import pytest

from slim_core.inference import AS_TRAINED, GateSetting
from slim_core.inference.types import Sampling
from slim_core.webui.limits import LimitError
from slim_core.webui.state.ballot import Ballot
from slim_core.webui.state.columns import columns
from slim_core.webui.state.session import LastRequest, Session
from slim_core.webui.wire import saved
from slim_core.webui.words import base_name
from tests.webui.conftest import ask


def load(text, backend):
    name = base_name(backend.engine.info)
    return saved.load(text, name, columns(Session(), backend), itertools.count(100).__next__)


def test_a_conversation_comes_back_without_its_routing(answered, backend):
    ask(answered, backend, "A second\nline ☃", "Be brief.")
    answered.gates = {"slim": GateSetting(0.5, 0.9)}
    text = saved.dump(answered, backend)
    assert "base64" not in text
    loaded = load(text, backend)
    assert [turn.id for turn in loaded.turns] == [100, 101]
    assert (loaded.other_base, loaded.gates, loaded.asked) == ("", {"slim": GateSetting(0.5, 0.9)}, None)
    for old, new in zip(answered.turns, loaded.turns, strict=True):
        assert (new.prompt, new.system) == (old.prompt, old.system)
        for name, before in old.answers.items():
            after = new.answers[name]
            assert (after.step, after.sampling, after.variant) == (before.step, before.sampling, before.variant)
            assert after.token_ids == before.token_ids and after.routing is None
        for one, other in zip(new.drift.variants, old.drift.variants, strict=True):
            assert one.variant == other.variant
            assert one.log_ratio.tolist() == pytest.approx(other.log_ratio.tolist(), abs=1e-5)


def test_what_is_being_asked_comes_back_as_that(answered, backend):
    answered.asked = LastRequest(("lora", "slim"), Sampling(seed=7, temperature=0.5, stop=("x",)), batched=False)
    loaded = load(saved.dump(answered, backend), backend)
    assert loaded.asked == answered.asked
    # What was there of these answers is written anew.
    assert list(loaded.turns[-1].answers) == ["base"]


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({"lora": "Mine"}, {"lora": "Mine"}),
        ({}, {}),
        ({"nobody": "Mine"}, {}),
        ({"lora": "two\u202e\nlines"}, {"lora": "two lines"}),
    ],
)
def test_whose_adapters_answered_comes_back(answered, backend, own, expected):
    data = json.loads(saved.dump(answered, backend))
    assert data["own"] == {}
    assert load(json.dumps(data | {"own": own}), backend).visitor_adapters == expected
    del data["own"]
    assert load(json.dumps(data), backend).visitor_adapters == {}


@pytest.mark.parametrize("own", [[], "lora", {"lora": 5}, {"lora": None}, {"lora": "\ud800"}])
def test_what_names_no_adapters_is_refused(answered, backend, own):
    data = json.loads(saved.dump(answered, backend)) | {"own": own}
    with pytest.raises(LimitError):
        load(json.dumps(data), backend)


@pytest.mark.parametrize("order", list(itertools.permutations(["base", "lora", "slim"])))
@pytest.mark.parametrize("again", [None, 0, 1, 2])
def test_before_a_vote_nothing_of_an_answer_is_kept(answered, backend, order, again):
    # Two turns that wait for a vote, the latest with or without an answer that is being written again.
    for turn in (answered.turns[0], ask(answered, backend, "Second", "Be brief.")):
        turn.answers, turn.ballot = {name: turn.answers[name] for name in order}, Ballot(order)
    answered.blind = True
    if again is not None:
        answered.asked = LastRequest((order[again],), Sampling(seed=3), batched=True)
    text = saved.dump(answered, backend)
    data = json.loads(text)
    for turn in data["turns"]:
        assert (turn["answers"], turn["drift"], turn["vote"]) == ({}, None, None)
    # The same words, whoever stands where.
    assert data["asked"]["columns"] == ["base", "lora", "slim"] and data["asked"]["sampling"]["seed"] == 3
    loaded = load(text, backend)
    assert loaded.blind and loaded.asked == LastRequest(("base", "lora", "slim"), Sampling(seed=3), True)
    assert [(turn.prompt, turn.system, turn.answers, turn.ballot) for turn in loaded.turns] == [
        ("Hello there", "", {}, None),
        ("Second", "Be brief.", {}, None),
    ]


def test_after_a_vote_it_is_kept_with_the_answers(answered, backend):
    ballot = Ballot(("slim", "base", "lora"), "lora")
    answered.blind, answered.turns[0].ballot = True, ballot
    loaded = load(saved.dump(answered, backend), backend)
    assert loaded.blind and loaded.asked is None
    assert loaded.turns[0].ballot == ballot and list(loaded.turns[0].answers) == ["base", "lora", "slim"]


def test_the_latest_turns_of_a_long_conversation_are_kept(answered, backend):
    for number in range(4):
        ask(answered, backend, f"Number {number}")
    one_turn = len(saved.dump(answered, backend)) // 5
    loaded = load(saved.dump(answered, backend, limit=int(one_turn * 2.5)), backend)
    assert [turn.prompt for turn in loaded.turns] == ["Number 2", "Number 3"]
    assert saved.dump(answered, backend, limit=10) == ""
    assert saved.dump(Session(), backend) == ""


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"format": "other"}, "not a conversation that this app exported"),
        ({"version": 9}, "has version 9; this app reads version 1"),
        ({"turns": 5}, "turns in the conversation must be a list"),
        ({"turns": [{"prompt": "", "answers": {}}]}, "Write a prompt first"),
        ({"turns": [{"prompt": "x", "answers": {"evil": {}}}]}, "has answers of 'evil'"),
        ({"gates": 5}, "gates in the conversation must be objects"),
        ({"gates": {"slim": 4}}, "gates in the conversation must be objects"),
        ({"gates": {"slim": {"strength": "4"}}}, "Strength must be a number"),
        ({"gates": {"slim": {"quantile": 0.3}}}, "The quantile is 0.3; it must be from 0.5 to 0.99"),
        ({"asked": 5}, "must be an object with a list of columns"),
        ({"asked": {"columns": ["base"], "sampling": {"seed": -1}}}, "Seed must be between 0"),
        ({"asked": {"columns": ["base"], "sampling": {"evil": 1}}}, "unknown setting 'evil'"),
    ],
)
def test_nothing_of_it_is_trusted(answered, backend, change, sentence):
    data = json.loads(saved.dump(answered, backend))
    with pytest.raises(LimitError, match=sentence):
        load(json.dumps(data | change), backend)


@pytest.mark.parametrize("text", [None, 5, "", "nonsense", "[" * 100_000, '"text"', "1" * 5000, "x" * 4_000_000])
def test_what_is_no_conversation_is_a_sentence(backend, text):
    with pytest.raises(LimitError, match="This is not a conversation that this app"):
        load(text, backend)


def test_columns_and_gates_that_are_not_here_are_left_out(answered, backend):
    data = json.loads(saved.dump(answered, backend))
    data |= {"gates": {"lora": {"strength": 3.0}, "gone": {}, "slim": {"strength": None}}}
    data |= {"asked": {"columns": ["gone", "slim", 5], "sampling": {}, "batched": True}}
    loaded = load(json.dumps(data), backend)
    assert loaded.gates == {"slim": AS_TRAINED} and loaded.asked == LastRequest(("slim",), Sampling(), True)
    data["asked"]["columns"] = ["gone"]
    assert load(json.dumps(data), backend).asked is None
