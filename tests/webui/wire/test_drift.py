# SPDX-License-Identifier: Apache-2.0
"""Where SLIM is the base, and how far the variants have moved in domain and outside."""

from dataclasses import replace

import pytest
import torch

from slim_core.inference import GateSetting
from slim_core.inference.types import VariantDrift
from slim_core.webui.state.session import Session
from slim_core.webui.wire import views
from slim_core.webui.wire.drift import by_verdict, exactness, taught
from tests.webui.conftest import ask


def drift(column, *kl):
    return VariantDrift(column, torch.zeros(len(kl)), torch.tensor(kl))


@pytest.fixture
def session(backend):
    session = Session()
    for prompt in ("A foreign prompt", "A trained prompt", "A foreign one again"):
        ask(session, backend, prompt)
    return session


def test_exactly_the_base_is_said_of_closed_gates_alone(session):
    foreign, trained, _ = session.turns
    assert exactness(session, foreign, drift("slim", 0.0, 0.0), "SLIM") == (
        "SLIM is exactly the base, at every token: every gate was 0, so by construction."
    )
    assert exactness(session, trained, drift("slim", 0.0, 1e-7), "SLIM") == (
        "SLIM is within a thousandth of a nat of the base at every token."
    )
    assert exactness(session, foreign, drift("slim", 0.0, 0.5), "SLIM") == (
        "SLIM is within a thousandth of a nat of the base at 1 of 2 tokens."
    )
    assert exactness(session, foreign, drift("slim", 0.5), "SLIM") == ""
    assert exactness(session, foreign, drift("lora", 0.0), "LoRA") == ""
    # Another history than the base's.
    later = session.turns[2]
    assert exactness(session, later, drift("slim", 0.0), "SLIM").startswith("SLIM is within")


def test_in_domain_and_outside(session, backend):
    for turn, (lora, slim) in zip(session.turns, ((1.0, 0.0), (3.0, 2.0), (2.0, 0.0)), strict=True):
        turn.drift = replace(turn.drift, variants=(drift("lora", lora, lora), drift("slim", slim, slim)))
    assert by_verdict(session) == [
        {"title": "Like the training data", "prompts": 1, "kl": {"LoRA": 3.0, "SLIM": 2.0}},
        {"title": "Unlike the training data", "prompts": 2, "kl": {"LoRA": 1.5, "SLIM": 0.0}},
    ]
    session.turns[0].answers["slim"].gate = GateSetting(0.0)
    assert by_verdict(session)[1]["prompts"] == 1
    session.shown_turn = session.turns[0].id
    assert views.drift(session, backend)["note"] == "Measured with a changed gate: SLIM open."
    session.turns[0].answers["slim"].gate = GateSetting(2.5)
    assert views.drift(session, backend)["note"] == "Measured with a changed gate: SLIM at strength 2.5."
    session.turns[0].answers["slim"].gate = GateSetting(quantile=0.9)
    assert views.drift(session, backend)["note"] == (
        "Measured with a changed gate: SLIM closing beyond 90% of the training data."
    )
    assert by_verdict(session)[1]["prompts"] == 1
    for turn in session.turns:
        turn.answers["slim"].gated = False
    assert by_verdict(session) == []


def test_drift_in_domain_is_called_what_was_taught(session, backend):
    _, trained, _ = session.turns
    assert [taught(turn) for turn in session.turns] == [False, True, False]
    said = views.transcript(session, backend)["turns"]
    moved = "moved as it was taught: finds the base’s answer 10⁶ times less likely"
    assert said[1]["answers"]["lora"]["summary"][-1] == moved
    assert said[1]["answers"]["slim"]["summary"][-1] == "finds the base’s answer 1.11 times less likely"
    assert said[0]["answers"]["lora"]["summary"][-1] == "finds the base’s answer 10⁶ times less likely"
    # A gate that is not as it was trained judges nothing.
    trained.answers["slim"].gate = GateSetting(8.0)
    assert not taught(trained)
    session.shown_turn = trained.id
    assert views.drift(session, backend)["taught"] is False
