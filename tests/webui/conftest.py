# SPDX-License-Identifier: Apache-2.0
"""A session with one answered turn, on the scripted engine."""

from __future__ import annotations

import pytest

from slim_core.inference.types import Sampling
from slim_core.webui.backend import Backend
from slim_core.webui.state.columns import columns
from slim_core.webui.state.session import Session, Turn
from slim_core.webui.wire.stream import start
from tests.ui.scripted import ScriptedEngine


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture
def backend(engine) -> Backend:
    return Backend(engine)


def ask(session: Session, backend: Backend, prompt: str, system: str = "") -> Turn:
    """Answer a prompt in all columns, and wait until they are done."""
    turn = Turn(session.next_id(), prompt, system, {})
    run = start(backend, session, turn, list(columns(session, backend)), Sampling(seed=3), batched=True)
    session.turns.append(turn)
    assert run.ended.wait(10)
    return turn


@pytest.fixture
def answered(backend) -> Session:
    session = Session()
    ask(session, backend, "Hello there")
    return session
