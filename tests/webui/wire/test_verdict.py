# SPDX-License-Identifier: Apache-2.0
"""What is said of a gate, and what is not."""

from dataclasses import replace

import pytest
import torch

from slim_core.inference import AS_TRAINED, GateSetting, Verdict
from slim_core.webui.backend import Backend
from slim_core.webui.state.session import Session
from slim_core.webui.wire import views
from slim_core.webui.wire.verdict import far, verdicts
from tests.webui.conftest import ask


def verdict(session, turn=-1):
    (only,) = verdicts(session, session.turns[turn])
    return only


@pytest.fixture
def asked(backend):
    def answer(*prompts, **strengths):
        session = Session()
        session.gates = {name: GateSetting(x) for name, x in strengths.items()}
        for prompt in prompts:
            ask(session, backend, prompt)
        return session

    return answer


def test_what_was_not_trained_gets_the_bases_answer_by_construction(asked):
    view = verdict(asked("A foreign prompt"))
    assert view["kind"] == "unlike" and view["column"] == "slim"
    assert view["sentence"] == (
        "Unlike the training data: SLIM sent 100% of it past LoRA and gives the base’s own answer, token for token."
    )
    assert view["numbers"] == (
        "100% past LoRA · distance 3.00; up to 1.00 is like the training data · every gate is 0 at every token: the "
        "base’s answer by construction, not by luck"
    )


def test_what_was_trained_gets_the_experts(asked):
    view = verdict(asked("A trained prompt"))
    assert view["kind"] == "like"
    assert view["sentence"] == "Like the training data: SLIM answers with its LoRA experts."


def test_what_is_in_between(asked):
    view = verdict(asked("Something"))
    assert view["kind"] == "mixed" and "sent 5" in view["sentence"] and "token for token" not in view["sentence"]


def test_a_router_that_goes_past_lora_by_itself_does_not_make_a_prompt_unlike_the_training_data(asked):
    session = asked("A foreign prompt")
    answer = session.turns[0].answers["slim"]
    answer.routing = replace(answer.routing, gate=torch.ones_like(answer.routing.gate))
    view = verdict(session)
    assert view["kind"] == "like"
    assert view["sentence"] == ("Like the training data, but 100% of it went past SLIM’s LoRA experts.")


def test_a_gate_that_is_forced_open(asked):
    view = verdict(asked("A foreign prompt", slim=0.0))
    assert view["kind"] == "open"
    assert view["sentence"] == (
        "Gate forced open: SLIM answers with its LoRA experts, though this is unlike its training data."
    )
    assert "this is like" in verdict(asked("A trained prompt", slim=0.0))["sentence"]


def test_equal_answers_without_closed_gates_are_no_construction(asked):
    session = asked("A foreign prompt")
    answer = session.turns[0].answers["slim"]
    gate = answer.routing.gate.clone()
    for token, said in ((0, "every gate is 0 from the turn’s first word on"), (1, " 99% of the gates are closed")):
        gate[:] = 0
        gate[0, token] = 0.01
        # A record that is already read is not read again.
        answer.routing = replace(answer.routing, gate=gate, weights=answer.routing.weights.clone())
        view = verdict(session)
        assert view["sentence"].endswith("past LoRA, and the answers are the same, word for word.")
        assert "construction" not in view["numbers"] and view["numbers"].endswith(said)


@pytest.mark.parametrize("other", ["text", "sampling", "history"])
def test_token_for_token_is_only_said_of_the_same_question(asked, other):
    session = asked("A foreign prompt", "Another foreign prompt")
    base = session.turns[-1].answers["base"]
    if other == "text":
        base.step = replace(base.step, text="Something else")
    elif other == "sampling":
        base.sampling = replace(base.sampling, seed=99)
    else:
        first = session.turns[0].answers["slim"]
        first.step = replace(first.step, text="Something else")
    assert "token for token" not in verdict(session)["sentence"]
    assert "construction" not in verdict(session)["numbers"]


def test_what_was_said_before_does_not_matter_to_a_base_that_does_not_read_it(asked):
    session = asked("A trained prompt", "A foreign prompt")
    answer = session.turns[1].answers["slim"]
    assert "token for token" not in verdicts(session, session.turns[1])[0]["sentence"]
    assert "token for token" in verdicts(session, session.turns[1], reads_latest_only=True)[0]["sentence"]
    answer.sampling = replace(answer.sampling, seed=99)
    assert "token for token" not in verdicts(session, session.turns[1], reads_latest_only=True)[0]["sentence"]


def test_while_it_is_written_it_says_so_far(asked):
    session = asked("A foreign prompt")
    answer = session.turns[0].answers["slim"]
    words = answer.step.text[:9]
    answer.step, answer.token_ids = replace(answer.step, state="writing", text=words), answer.token_ids[:2]
    assert "gives, so far, the base’s own answer" in verdict(session)["sentence"]
    answer.step, answer.token_ids = replace(answer.step, text=""), ()
    assert verdict(session)["sentence"].endswith("past LoRA.")
    answer.routing = None
    assert verdict(session) == {
        "column": "slim",
        "kind": "waiting",
        "sentence": "SLIM is reading the prompt…",
        "numbers": "",
    }


@pytest.mark.parametrize("stopped", ["slim", "base"])
def test_of_an_answer_that_was_stopped_it_says_as_far_as_both_go(asked, stopped):
    session = asked("A foreign prompt")
    answer = session.turns[0].answers[stopped]
    answer.step = replace(answer.step, text=answer.step.text[:9], finish_reason="stopped")
    answer.token_ids = answer.token_ids[:2]
    assert "gives, as far as both go, the base’s own answer" in verdict(session)["sentence"]
    answer.step = replace(answer.step, state="writing")
    assert "gives, so far, the base’s own answer" in verdict(session)["sentence"]


def test_an_adapter_without_a_gate_has_no_verdict(engine, backend):
    old = tuple(replace(variant, strength=None) for variant in engine.variants)
    engine.variants = backend.variants = old
    session = Session()
    ask(session, backend, "A foreign prompt")
    shown = views.transcript(session, backend)
    assert shown["gates"] == {} and not shown["metered"] and shown["turns"][0]["verdicts"] == []


def test_a_verdict_is_read_once_a_record(asked, monkeypatch):
    from slim_core.webui.state import session as module

    session, seen = asked("Something"), []
    monkeypatch.setattr(module, "verdict_of", lambda record: seen.append(record) or original(record))
    from slim_core.inference import verdict_of as original

    for _ in range(4):
        verdict(session)
    assert len(seen) == 1


def test_the_note_comes_from_the_template(engine, backend):
    session = Session()
    assert views.transcript(session, backend)["note"] == ""
    ask(session, backend, "One")
    assert views.transcript(session, backend)["note"] == ""
    engine.latest_only = True
    assert "reads only the latest prompt" in views.transcript(session, Backend(engine))["note"]


def test_no_number_is_less_than_nothing_by_rounding_alone():
    assert far(Verdict(1.0, -0.004, -0.5, 0.0, False, 1.0)) == "distance 0.00; up to −0.50 is like the training data"


def test_strength_goes_to_the_row_and_the_drift(asked):
    session = asked("A foreign prompt", slim=0.0)
    turn = session.turns[0]
    assert turn.answers["slim"].gate == GateSetting(0.0) and float(turn.answers["slim"].routing.gate.min()) == 1
    assert [v.variant for v in turn.drift.variants] == ["lora", "slim"]
    assert turn.answers["lora"].gate == AS_TRAINED and torch.equal(
        turn.answers["lora"].routing.gate, torch.ones_like(turn.answers["lora"].routing.gate)
    )
