# SPDX-License-Identifier: Apache-2.0
"""A run of answers and what the session shows of it."""

import time

import pytest

from slim_core.inference.types import Sampling
from slim_core.webui.backend import Backend, Job, seconds_of
from slim_core.webui.limits import LimitError
from slim_core.webui.state import session as session_module
from slim_core.webui.state.session import LastRequest, Session, Turn
from slim_core.webui.wire import views
from slim_core.webui.wire.stream import INTERVAL, start, ticks
from tests.webui.conftest import ask


NAMES = ("base", "lora", "slim")


def begin(session, backend, prompt="Hello", names=NAMES):
    turn = Turn(session.next_id(), prompt, "", {})
    run = start(backend, session, turn, names, Sampling(), batched=True)
    session.turns.append(turn)
    return turn, run


def test_drawings_are_throttled_and_the_last_one_comes(engine, backend):
    engine.delay, engine.length = dict.fromkeys(NAMES, 0.01), 80
    session = Session()
    turn, run = begin(session, backend)
    begun = time.monotonic()
    drawn = list(ticks(run))
    assert len(drawn) <= (time.monotonic() - begun) / INTERVAL + 3
    assert drawn[-1] is True and sum(drawn) < len(drawn)
    assert all(answer.step.state == "done" for answer in turn.answers.values())
    assert session.run is None and turn.drift is not None


def test_leaving_stops_the_work(engine, backend, monkeypatch):
    monkeypatch.setattr(session_module, "PATIENCE", 0.05)
    engine.delay, engine.length = dict.fromkeys(NAMES, 0.05), 1000
    session = Session()
    turn, run = begin(session, backend)
    drawing = ticks(run)
    next(drawing)
    drawing.close()
    assert run.ended.wait(5)
    assert {answer.step.finish_reason for answer in turn.answers.values()} == {"stopped"}
    assert engine.closed == 1
    # It can be asked again as it was.
    assert session.asked == LastRequest(NAMES, Sampling(), True)


def test_who_comes_back_soon_finds_the_answers_still_being_written(engine, backend, monkeypatch):
    monkeypatch.setattr(session_module, "PATIENCE", 0.5)
    engine.delay, engine.length = dict.fromkeys(NAMES, 0.01), 200
    session = Session()
    turn, run = begin(session, backend)
    drawing = ticks(run)
    next(drawing)
    drawing.close()
    assert list(ticks(run))[-1] is True
    assert {answer.step.tokens for answer in turn.answers.values()} == {200}
    assert session.asked is None


def test_who_looks_on_keeps_the_answers_going(engine, backend, monkeypatch):
    monkeypatch.setattr(session_module, "PATIENCE", 0.05)
    engine.delay, engine.length = dict.fromkeys(NAMES, 0.01), 200
    session = Session()
    turn, run = begin(session, backend)
    first, second = ticks(run), ticks(run)
    next(first), next(second)
    first.close()
    assert list(second)[-1] is True
    assert {answer.step.finish_reason for answer in turn.answers.values()} == {"end"}


def test_who_finds_no_place_is_told(engine):
    engine.delay, engine.length = dict.fromkeys(NAMES, 0.05), 1000
    backend = Backend(engine, places=2)
    runs = [begin(Session(), backend)[1] for _ in range(2)]
    late = Session()
    with pytest.raises(LimitError, match="2 prompts are running or queued"):
        begin(late, backend)
    assert late.run is None
    runs[0].stop()
    assert runs[0].ended.wait(5)
    again = begin(late, backend)[1]
    for run in (runs[1], again):
        run.stop()
        assert run.ended.wait(5)


def test_the_drift_is_measured_before_those_who_wait(engine, backend):
    engine.delay, engine.length = dict.fromkeys(NAMES, 0.01), 20
    turn, first = begin(Session(), backend)
    _, second = begin(Session(), backend)
    assert first.ended.wait(10) and turn.drift is not None
    assert not second.ended.is_set()
    second.stop()
    assert second.ended.wait(5)


def test_a_second_run_is_refused_and_after_a_stop_it_waits(engine, backend):
    engine.delay, engine.length = dict.fromkeys(NAMES, 0.05), 1000
    session = Session()
    _, run = begin(session, backend)
    with pytest.raises(LimitError, match="still being written"):
        begin(session, backend)
    run.stop()
    engine.length = 5
    turn, again = begin(session, backend, "Next")
    assert again.ended.wait(10)
    assert turn.answers["base"].step.text


def test_an_engine_that_breaks_is_a_sentence(engine, backend, caplog):
    def broken(*_args, **_kwargs):
        raise ZeroDivisionError("secret detail")
        yield

    engine.answer = broken
    session = Session()
    turn, run = begin(session, backend)
    assert run.ended.wait(5)
    for answer in turn.answers.values():
        assert answer.step.finish_reason == "error"
        assert "secret" not in answer.step.error
    assert "secret detail" in caplog.text


def test_only_one_variant_again_keeps_the_drift_current(engine, backend, answered):
    turn = answered.turns[0]
    before = turn.drift
    run = start(backend, answered, turn, ["lora"], Sampling(seed=9), batched=True)
    assert run.ended.wait(5)
    assert turn.drift is not before and "seed9" in turn.answers["lora"].step.text
    assert "seed3" in turn.answers["base"].step.text


def test_history_is_each_variants_own(engine, backend, answered):
    ask(answered, backend, "Second", "Be brief.")
    third = Turn(answered.next_id(), "Third", "Be brief.", {})
    roles = [message.role for message in answered.messages("slim", third, "slim")]
    assert roles == ["system", "user", "assistant", "user", "assistant", "user"]
    assert answered.messages("slim", third, "slim")[2].content.startswith("SLIM")


def test_a_turn_without_an_answer_is_left_out(engine, backend, answered):
    ask(answered, backend, "fail please")
    third = Turn(answered.next_id(), "Third", "", {})
    assert [message.content for message in answered.messages("base", third, "base")][0::2] == ["Hello there", "Third"]


def test_a_long_conversation_keeps_the_latest_routing(answered, backend):
    ask(answered, backend, "Second")
    numbers = sum(a.routing.weights.numel() for a in answered.turns[1].answers.values() if a.routing is not None)
    answered.trim(numbers)
    assert [turn.answers["slim"].routing is None for turn in answered.turns] == [True, False]


def test_views_hold_plain_values(answered, backend):
    import json

    answered.view = "differences"
    views_of = [views.transcript(answered, backend), views.routing(answered, backend), views.drift(answered, backend)]
    json.dumps(views_of)
    assert views_of[0]["turns"][0]["answers"]["lora"]["diff"][0] == ("removed", "Base")
    assert views_of[1]["data"]["column"] == "slim" and views_of[2]["sentence"].startswith("LoRA finds")
    assert views.status(answered) == (
        "Base: done, 12 tokens. LoRA: done, 12 tokens. SLIM: done, 12 tokens, partly like the training data."
    )


def test_a_lent_gpu_is_asked_for_once_with_all_rows(engine):
    calls = []

    def gpu(duration):
        def lend(function):
            def call(job, stops):
                calls.append((len(job.rows), duration(job, stops)))
                yield from function(job, stops)

            return call

        return lend

    backend = Backend(engine, gpu)
    session = Session()
    ask(session, backend, "Hello")
    assert calls == [(3, seconds_of(Job((None,) * 3, Sampling()), None))]
    assert session.turns[0].drift is not None
