# SPDX-License-Identifier: Apache-2.0
"""The meter under the prompt's box: it says what the gate would do, or nothing."""

import threading
from dataclasses import replace

import pytest

from slim_core.inference import GateSetting
from slim_core.webui.backend import Backend
from slim_core.webui.state import meter as module
from slim_core.webui.state.meter import FIRST_TOKENS, Meter
from slim_core.webui.state.session import Session
from slim_core.webui.wire.peek import MOST_CHARACTERS, peek
from slim_core.webui.wire.verdict import verdicts
from tests.queueing import turn
from tests.waiting import until
from tests.webui.conftest import ask


def test_what_it_says(backend, engine):
    session = Session()
    reading = peek(session, backend, "  A foreign prompt ")
    assert reading == {
        "kind": "unlike",
        "word": "Unlike the training data",
        "share": "100% past LoRA",
        "far": "distance 3.00; up to 1.00 is like the training data",
        "distance": 3.0,
        "reference": 1.0,
    }
    session = Session()
    session.gates = {"slim": GateSetting(0.0)}
    assert peek(session, backend, "A foreign prompt")["kind"] == "open"
    session = Session()
    session.gates = {"slim": GateSetting(quantile=0.5)}
    reading = peek(session, backend, "A foreign prompt")
    assert (reading["reference"], reading["far"]) == (0.5, "distance 3.00; up to 0.50 is like the training data")


def test_it_reads_the_system_prompt_too(backend):
    session = Session()
    turn = ask(session, backend, "Hello", system="foreign words")
    session.clear()
    reading = peek(session, backend, "Hello", " foreign words ")
    assert reading["kind"] == verdicts(session, turn)[0]["kind"] == "unlike"
    assert peek(Session(), backend, "Hello", None)["kind"] == "mixed"


@pytest.mark.parametrize("system", ["a\u0007", 5, ["x"], "x" * MOST_CHARACTERS])
def test_it_says_nothing_with_a_system_prompt_that_cannot_be_asked(backend, system):
    assert peek(Session(), backend, "Hello", system) == {}


@pytest.mark.parametrize("text", ["", "  ", "a\u0007", "fail please", None, 5, ["x"], {}, "x" * (MOST_CHARACTERS + 1)])
def test_it_says_nothing(backend, text):
    assert peek(Session(), backend, text) == {}


def test_nothing_on_a_lent_gpu_and_without_a_gate(engine):
    zero_gpu = Backend(engine, lambda duration: lambda work: work)
    assert peek(Session(), zero_gpu, "Hello") == {}
    engine.variants = tuple(replace(v, strength=None) for v in engine.variants)
    assert peek(Session(), Backend(engine), "Hello") == {}
    assert engine.peeks == 0


def test_an_answer_goes_first(engine, backend):
    session = Session()
    with turn(engine.queue):
        assert peek(session, backend, "Hello") == {"busy": True}
    assert engine.peeks == 0
    assert peek(session, backend, "Hello")["kind"] == "mixed"


def test_one_reading_at_a_time_and_a_pause_after_it(engine, backend):
    engine.reading = 0.2
    session, readings = Session(), []
    reading = threading.Thread(target=lambda: readings.append(peek(session, backend, "Hello")))
    reading.start()
    until(lambda: engine.peeks == 1)
    assert peek(session, backend, "Hello again") == {"busy": True}
    reading.join()
    assert readings[0]["kind"] == "mixed"
    assert peek(session, backend, "Hello again") == {"busy": True}
    assert engine.peeks == 1
    # Another visitor need not wait for this one's pause.
    assert peek(Session(), backend, "Hello")["kind"] == "mixed"


def test_a_failure_frees_the_meter(engine, backend, caplog):
    session = Session()
    assert peek(session, backend, "fail please") == {}

    def broken(row):
        raise ZeroDivisionError

    engine.peek = broken
    assert peek(session, backend, "Hello") == {} and "the meter failed" in caplog.text
    del engine.peek
    assert peek(session, backend, "Hello")["kind"] == "mixed"


def test_long_prompts_on_slow_machines_are_not_read(monkeypatch):
    meter = Meter()
    assert meter.fits(FIRST_TOKENS) and not meter.fits(FIRST_TOKENS + 1)
    meter.end(100, 0.01)
    assert meter.fits(2000) and not meter.fits(3000)
    meter.end(100, 1.0)
    assert meter.fits(100) and not meter.fits(101)
    monkeypatch.setattr(module.time, "monotonic", lambda: 1e9)
    assert meter.begin() and not meter.begin()


def test_it_reads_the_prompt_as_the_next_of_the_conversation(engine, backend):
    session = Session()
    ask(session, backend, "First")
    rows = []
    engine.peek = lambda row: rows.append(row)
    peek(session, backend, "Second")
    assert [message.role for message in rows[0].messages] == ["user", "assistant", "user"]
    assert rows[0].messages[-1].content == "Second"


def test_one_slow_reading_does_not_end_the_meter():
    meter = Meter()
    meter.end(3, 0.5)
    assert meter.fits(100), "three tokens say little of a hundred"
    meter.end(3, 20.0)
    assert [meter.fits(10) for _ in range(4)] == [False, False, True, True]
