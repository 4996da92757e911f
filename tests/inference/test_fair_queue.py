# SPDX-License-Identifier: Apache-2.0
"""Several callers where none finds room beside another: one line; flags that stop rows from elsewhere."""

import gc
import multiprocessing
import os
import pickle
import threading

import pytest
import torch

from slim_core.inference import Drift, EngineError, Reading, Row, Sampling, Step, Stops
from slim_core.inference import engine as engine_module
from slim_core.inference.fair_queue import FairQueue
from tests.inference.conftest import LONGER, QUESTION, SHORT, ids, last, rows
from tests.inference.probe import EngineProbe, file_of, in_line
from tests.queueing import turn
from tests.waiting import until


# The first of those who wait answers for longer than the other needs to look at its place.
WAITING = (("b", LONGER, 150), ("c", SHORT, 7))


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(engine_module, "WAITING_SECONDS", 0.02)


@pytest.fixture
def engine(engine):
    """It answers one caller at a time."""
    EngineProbe(engine).one_at_a_time()
    return engine


def test_those_who_wait_know_their_place_and_get_their_own_answers(engine):
    expected = {
        name: ids(last(engine, rows(messages), Sampling(max_new_tokens=limit))) for name, messages, limit in WAITING
    }
    first = engine.answer(rows(QUESTION), Sampling(max_new_tokens=200))
    next(first)
    answers, places, order = {}, {"b": [], "c": []}, []

    def ask(name, messages, limit):
        for step in engine.answer(rows(messages), Sampling(max_new_tokens=limit)):
            places[name].append(step.place)
            if step.place:
                assert all(row.state == "waiting" and row.text == "" for row in step.rows)
        order.append(name)
        answers[name] = ids(step)

    threads = []
    for name, messages, limit in WAITING:
        threads.append(threading.Thread(target=ask, args=(name, messages, limit)))
        threads[-1].start()
        until(lambda name=name: places[name])
    for _ in range(5):
        next(first)
    assert places["b"][0] == 1 and places["c"][0] == 2 and not order
    until(lambda: len(places["b"]) > 2)
    first.close()
    for thread in threads:
        thread.join(20)
    assert order == ["b", "c"] and answers == expected
    assert 1 in places["c"] and places["c"][-1] == 0


def test_a_caller_that_goes_away_leaves_the_line(engine):
    first = engine.answer(rows(QUESTION), Sampling(max_new_tokens=50))
    next(first)
    second = engine.answer(rows(QUESTION), Sampling())
    assert next(second).place == 1
    third = engine.answer(rows(SHORT), Sampling())
    assert next(third).place == 2
    second.close()
    assert next(third).place == 1
    del first
    gc.collect()
    assert next(third).place == 0


def test_who_is_stopped_while_waiting_leaves_the_line(engine):
    first = engine.answer(rows(QUESTION), Sampling(max_new_tokens=50))
    next(first)
    stops = Stops(3)
    second = engine.answer(rows(QUESTION), Sampling(), stops)
    next(second)
    stops.stop_all()
    *_, step = second
    assert step.done and {row.finish_reason for row in step.rows} == {"stopped"}
    assert EngineProbe(engine).in_line == 1


def test_after_the_last_step_the_model_is_free(engine):
    for step in engine.answer(rows(QUESTION), Sampling(max_new_tokens=3)):
        if step.done:
            engine.drift(QUESTION, step.rows[0].token_ids, ["slim"])


def test_the_reading_of_the_answer_does_not_wait_again(engine):
    reading = Reading(("lora", "slim"), QUESTION)
    first = engine.answer(rows(QUESTION), Sampling(max_new_tokens=5), reading=reading)
    next(first)
    second = engine.answer(rows(SHORT), Sampling(max_new_tokens=5))
    assert next(second).place == 1
    *_, step, drift = first
    assert step.done and isinstance(drift, Drift)
    assert next(second).place == 0
    second.close()
    expected = engine.drift(QUESTION, step.rows[0].token_ids, ["lora", "slim"])
    assert drift.tokens == expected.tokens
    for variant, expected_variant in zip(drift.variants, expected.variants, strict=True):
        assert variant.variant == expected_variant.variant and torch.equal(
            variant.log_ratio, expected_variant.log_ratio
        )


def test_what_is_read_is_the_bases_answer_or_the_one_given(engine):
    def ends(names, **options):
        asked = [Row(name, QUESTION) for name in names]
        return list(engine.answer(asked, Sampling(max_new_tokens=4), reading=Reading(("slim",), QUESTION, **options)))

    *_, step, drift = ends(["lora", "base"])
    assert len(drift.tokens) == len(step.rows[1].token_ids)
    *_, step, drift = ends(["lora"], answer_ids=(5, 6))
    assert step.done and len(drift.tokens) == 2
    assert isinstance(ends(["lora"])[-1], Step)


def test_attaching_waits_for_the_running_answer(engine, folders):
    first = engine.answer(rows(QUESTION), Sampling(max_new_tokens=200))
    next(first)
    thread = threading.Thread(target=lambda: engine.attach(folders.slim, name="late"))
    thread.start()
    for _ in range(5):
        next(first)
        assert "late" not in {variant.name for variant in engine.variants}
    first.close()
    thread.join(20)
    assert "late" in {variant.name for variant in engine.variants}


def test_a_generator_may_be_driven_by_another_thread_at_each_step(engine):
    stream = engine.answer(rows(QUESTION, routing=True), Sampling(max_new_tokens=6))
    steps = []

    def one():
        steps.append(next(stream, None))

    while not steps or steps[-1] is not None:
        thread = threading.Thread(target=one)
        thread.start()
        thread.join(20)
    assert ids(steps[-2]) == ids(last(engine, rows(QUESTION), Sampling(max_new_tokens=6)))


# -- stop flags ------------------------------------------------------------------------------------------------------


def test_flags():
    stops = Stops(3)
    stops.stop(1)
    assert [stops.stopped(row) for row in range(3)] == [False, True, False] and len(stops) == 3
    stops.stop_all()
    assert all(stops.stopped(row) for row in range(3))
    with pytest.raises(IndexError, match="no row 3"):
        stops.stop(3)


def test_flags_must_fit_the_rows(engine):
    with pytest.raises(EngineError, match="3 answers but stop flags for 2"):
        engine.answer(rows(QUESTION), Sampling(), Stops(2))


def test_a_pickled_copy_shares_the_flags():
    stops = Stops(2)
    copy = pickle.loads(pickle.dumps(stops))
    stops.stop(1)
    assert copy.stopped(1) and not copy.stopped(0)
    copy.stop(0)
    assert stops.stopped(0)


def test_the_file_goes_with_the_flags():
    stops = Stops(2)
    path = file_of(stops)
    copy = pickle.loads(pickle.dumps(stops))
    del copy
    gc.collect()
    assert os.path.exists(path)
    del stops
    gc.collect()
    assert not os.path.exists(path)


def _answer_in_child(engine, stops, pipe):
    for step in engine.answer(rows(QUESTION), Sampling(max_new_tokens=200), stops):
        if step.rows[0].tokens == 3 and not step.done:
            pipe.send("three")
            pipe.recv()
    pipe.send([(row.finish_reason, row.tokens) for row in step.rows])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_flags_stop_rows_in_a_forked_process(engine):
    engine.end_tokens = frozenset()
    # Whoever is in line in the parent must not keep the child waiting.
    EngineProbe(engine).join()
    stops = Stops(3)
    here, there = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=_answer_in_child, args=(engine, stops, there))
    child.start()
    assert here.poll(30) and here.recv() == "three"
    stops.stop_all()
    here.send("go on")
    assert here.poll(30)
    assert here.recv() == [("stopped", 3)] * 3
    child.join(20)


def test_a_turn_is_given_in_order():
    line, order = FairQueue(), []
    first = line.join()
    threads = []

    def take(number):
        with turn(line):
            order.append(number)

    for number in range(4):
        threads.append(threading.Thread(target=take, args=(number,)))
        threads[-1].start()
        until(lambda number=number: in_line(line) == number + 2)
    first.leave()
    for thread in threads:
        thread.join(10)
    assert order == [0, 1, 2, 3]


def served(line, places):
    """Who they are, in the order of their turns."""
    order, waiting = [], dict(places)
    while waiting:
        name = next(name for name, place in waiting.items() if place.wait(0))
        order.append(name)
        waiting.pop(name).leave()
    return order


def test_visitors_take_turns_whoever_came_first():
    line = FairQueue()
    many = {f"a{number}": line.join("a") for number in range(50)}
    others = {"b0": line.join("b"), "c0": line.join("c"), "b1": line.join("b"), "alone": line.join()}
    assert [others[name].ahead for name in ("b0", "c0", "b1", "alone")] == [1, 2, 5, 3]
    assert served(line, many | others)[:8] == ["a0", "b0", "c0", "alone", "a1", "b1", "a2", "a3"]


def test_a_visitor_is_not_made_up_for_turns_that_nobody_else_wanted():
    line = FairQueue()
    assert served(line, {name: line.join("a") for name in range(10)}) == list(range(10))
    places = {"a0": line.join("a"), "b0": line.join("b"), "b1": line.join("b"), "a1": line.join("a")}
    assert served(line, places) == ["b0", "a0", "b1", "a1"]


def test_fifty_prompts_of_one_visitor_do_not_hold_back_anothers_first(engine):
    def ask(visitor):
        return engine.answer([Row("base", SHORT)], Sampling(max_new_tokens=2), visitor=visitor)

    many = [ask("many") for _ in range(50)]
    places = [next(call).place for call in many]
    assert places == list(range(50))
    first = ask("first")
    assert next(first).place == 1
    many[0].close()
    assert next(first).place == 0
    first.close()
    for call in many:
        call.close()
    assert EngineProbe(engine).in_line == 0


def test_who_stops_one_answer_while_waiting_sees_it_stopped(engine):
    first = engine.answer(rows(QUESTION), Sampling(max_new_tokens=200))
    next(first)
    stops = Stops(3)
    second = engine.answer(rows(QUESTION), Sampling(max_new_tokens=3), stops)
    assert [row.state for row in next(second).rows] == ["waiting"] * 3
    stops.stop(1)
    rows_now = next(second).rows
    assert [row.state for row in rows_now] == ["waiting", "done", "waiting"]
    assert rows_now[1].finish_reason == "stopped"
    first.close()
    *_, step = second
    assert [row.finish_reason == "stopped" for row in step.rows] == [False, True, False]


def test_one_at_a_time_an_answer_that_has_not_begun_stops_at_once(engine):
    stops = Stops(3)
    steps = engine.answer(rows(QUESTION), Sampling(max_new_tokens=8), stops, batched=False)
    next(steps)
    stops.stop(2)
    step = next(steps)
    assert step.rows[0].state in ("reading", "writing") and step.rows[1].state == "waiting"
    assert step.rows[2].state == "done" and step.rows[2].finish_reason == "stopped"
    *_, step = steps
    assert [row.tokens > 0 for row in step.rows] == [True, True, False]
