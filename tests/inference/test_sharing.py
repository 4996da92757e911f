# SPDX-License-Identifier: Apache-2.0
"""Several callers in one batch: each gets what it gets alone, whoever comes, goes, is stopped or fails beside it."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator

import pytest
import torch

from slim_core.inference import (
    Drift,
    EngineError,
    GateSetting,
    Message,
    Passage,
    Reading,
    Row,
    Sampling,
    Step,
    Stops,
    cache,
)
from slim_core.inference.batch import Batch
from tests.inference.conftest import LONGER, QUESTION, SHORT, ids, last, rows
from tests.inference.probe import EngineProbe
from tests.inference.test_batch import SETTINGS
from tests.waiting import until


TURNS = (*LONGER, Message("assistant", "It is Lima."), *QUESTION)
# What callers ask for: rows, how tokens are chosen, and how it is asked.
CALLS = [
    (rows(QUESTION, routing=True), Sampling(max_new_tokens=14), {}),
    (rows(TURNS, SHORT, QUESTION), SETTINGS[2], {}),
    (
        [Row("slim", LONGER, True, GateSetting(0.0)), Row("base", LONGER)],
        SETTINGS[1],
        {"reading": Reading(("slim",), LONGER)},
    ),
    (rows(SHORT, routing=True), SETTINGS[3], {"batched": False}),
    ([Row("lora", TURNS, True)], Sampling(max_new_tokens=3), {}),
]


def drive(calls: list[Iterator[Step | Drift]], seed: int = 0) -> list[list[Step | Drift]]:
    """All that several callers are told, who ask in a random order and begin one after another."""
    dice, received = random.Random(seed), [[] for _ in calls]
    open_calls = list(range(len(calls)))
    while open_calls:
        # Those at the front have begun more often.
        index = open_calls[min(dice.randrange(len(open_calls)), dice.randrange(len(open_calls)))]
        item = next(calls[index], None)
        if item is None:
            open_calls.remove(index)
        else:
            received[index].append(item)
    return received


def answers(items: list[Step | Drift]) -> Step:
    return next(item for item in reversed(items) if isinstance(item, Step))


def assert_same(together: list[Step | Drift], alone: list[Step | Drift]) -> None:
    one, other = answers(together), answers(alone)
    assert ids(one) == ids(other)
    assert [(r.text, r.finish_reason, r.error) for r in one.rows] == [
        (r.text, r.finish_reason, r.error) for r in other.rows
    ]
    assert one.routing.keys() == other.routing.keys()
    for index, record in one.routing.items():
        expected = other.routing[index]
        assert (record.tokens, record.modules, record.prompt_tokens) == (
            expected.tokens,
            expected.modules,
            expected.prompt_tokens,
        )
        for part in ("weights", "distance", "gate", "reference"):
            torch.testing.assert_close(getattr(record, part), getattr(expected, part), rtol=1e-4, atol=1e-4)
        assert torch.equal(record.cluster, expected.cluster)
    drifts = [[item for item in items if isinstance(item, Drift)] for items in (together, alone)]
    assert len(drifts[0]) == len(drifts[1])
    for here, there in zip(*drifts, strict=True):
        assert here.tokens == there.tokens
        for a, b in zip(here.variants, there.variants, strict=True):
            torch.testing.assert_close(a.kl, b.kl, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("seed", [0, *[pytest.param(seed, marks=pytest.mark.nightly) for seed in (1, 2)], 3])
@pytest.mark.parametrize("piece", [4, 512])
def test_each_caller_gets_what_it_gets_alone(engine, seed, piece, monkeypatch):
    engine.end_tokens = frozenset()
    alone = [list(engine.answer(asked, sampling, **options)) for asked, sampling, options in CALLS]
    monkeypatch.setattr(cache, "PIECE", piece)
    most = watch_batches(monkeypatch)
    received = drive(
        [engine.answer(asked, s, routing_every=0.001 * seed, **options) for asked, s, options in CALLS], seed
    )
    for one, other in zip(received, alone, strict=True):
        assert_same(one, other)
    assert max(most) > 4
    assert EngineProbe(engine).in_line == 0


def watch_batches(monkeypatch) -> list[int]:
    """How many rows each forward had."""
    counts, original = [], Batch.forward

    def forward(self):
        counts.append(len(self.answers))
        return original(self)

    monkeypatch.setattr(Batch, "forward", forward)
    return counts


def test_threads_get_what_each_gets_alone(engine):
    calls = CALLS * 3
    alone = [list(engine.answer(asked, sampling, **options)) for asked, sampling, options in CALLS] * 3
    received: list[list[Step | Drift]] = [[] for _ in calls]

    def ask(index):
        asked, sampling, options = calls[index]
        for _ in range(2):
            received[index] = list(engine.answer(asked, sampling, **options))

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    for one, other in zip(received, alone, strict=True):
        assert_same(one, other)
    assert EngineProbe(engine).in_line == 0


def test_forwards_of_several_callers_run_in_one_thread(engine, monkeypatch):
    """A thread that has multiplied matrices keeps buffers, so that memory would grow with the number of callers."""
    engine.end_tokens = frozenset()
    where: list[threading.Thread] = []
    original = Batch.forward

    def forward(self):
        where.append(threading.current_thread())
        return original(self)

    monkeypatch.setattr(Batch, "forward", forward)
    first = engine.answer(rows(QUESTION), Sampling(max_new_tokens=14))
    next(first)  # it begins, and is being answered until it is closed
    callers = [threading.Thread(target=last, args=(engine, rows(SHORT))) for _ in range(6)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(120)
    assert len(set(where)) == 1
    assert not {*callers, threading.current_thread()} & {*where}
    first.close()
    where.clear()
    last(engine, rows(SHORT))
    assert set(where) == {threading.current_thread()}, "one that is alone runs its own forwards"


def test_an_answer_goes_on_while_its_caller_looks_away(engine):
    slow = engine.answer(rows(QUESTION), Sampling(max_new_tokens=9))
    next(slow)
    last(engine, rows(LONGER), Sampling(max_new_tokens=30))
    rest = list(slow)
    assert len(rest) == 1 and ids(rest[0]) == ids(last(engine, rows(QUESTION), Sampling(max_new_tokens=9)))


def test_tokens_come_while_a_long_prompt_is_read(engine, monkeypatch):
    engine.end_tokens = frozenset()
    monkeypatch.setattr(cache, "PIECE", 8)
    monkeypatch.setattr(cache, "SHARED_PIECE", 4)
    writing = engine.answer(rows(SHORT), Sampling(max_new_tokens=60))
    while next(writing).rows[0].tokens < 2:
        pass
    reading = engine.answer(rows(TURNS), Sampling(max_new_tokens=2))
    assert next(reading).rows[0].state == "reading"
    step = next(reading)
    steps = [step]
    while step.rows[0].state == "reading":
        step = next(reading)
        steps.append(step)
    # A piece of four tokens and a token for the others, in turn.
    pieces = (step.rows[0].prompt_tokens - 1) // 4
    assert len(steps) == pieces + 1
    assert next(writing).rows[0].tokens in (2 + pieces, 3 + pieces)


@pytest.mark.parametrize("way", ["closed", "stopped"])
def test_who_leaves_leaves_the_others_as_they_are(engine, way):
    expected = ids(last(engine, rows(TURNS), Sampling(max_new_tokens=20)))
    stops = Stops(3)
    leaving = engine.answer(rows(LONGER, routing=True), Sampling(max_new_tokens=60), stops)
    staying = engine.answer(rows(TURNS), Sampling(max_new_tokens=20))
    for _ in range(4):
        next(leaving)
        step = next(staying)
    if way == "closed":
        leaving.close()
    else:
        stops.stop_all()
        *_, ended = leaving
        assert {row.finish_reason for row in ended.rows} == {"stopped"} and ended.rows[0].tokens < 20
    *_, step = staying
    assert ids(step) == expected and EngineProbe(engine).in_line == 0


def test_a_row_whose_numbers_are_not_finite_ends_alone_among_strangers(engine):
    expected = ids(last(engine, rows(LONGER)))
    for module in EngineProbe(engine).base.modules():
        if hasattr(module, "slim_B"):
            for name, parameter in module.slim_B.items():
                if "lora" in name:
                    parameter.data.fill_(float("nan"))
    received = drive([engine.answer(rows(m), Sampling(max_new_tokens=12)) for m in (QUESTION, LONGER, TURNS)])
    for items in received:
        assert "no longer finite" in answers(items).rows[1].error
        assert [row.error for row in answers(items).rows[::2]] == [None, None]
    assert ids(answers(received[1]))[::2] == expected[::2]


def break_forward(engine, monkeypatch, error, fails):
    """Forwards fail where `fails` says so of their rows: at the end, when the blocks hold the tokens already."""
    original, now = Batch._read, []

    def read(self, count):
        now[:] = self.answers
        return original(self, count)

    def head(module, args):
        if fails(now):
            raise error

    monkeypatch.setattr(Batch, "_read", read)
    EngineProbe(engine).base.lm_head.register_forward_pre_hook(head)


def test_where_the_memory_is_used_up_who_came_last_ends(engine, monkeypatch):
    sampling = Sampling(max_new_tokens=12)
    engine.end_tokens = frozenset()
    expected = ids(last(engine, rows(QUESTION), sampling))
    first = engine.answer(rows(QUESTION), sampling)
    while next(first).rows[0].tokens < 2:
        pass
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
    break_forward(engine, monkeypatch, error, lambda answers: len(answers) > 3)
    second = engine.answer(rows(LONGER), sampling)
    received = drive([first, second])
    assert ids(answers(received[0])) == expected
    for row in answers(received[1]).rows:
        assert row.finish_reason == "error" and "is used up: compare fewer answers" in row.error


def test_where_the_model_fails_for_one_caller_the_others_go_on(engine, monkeypatch):
    sampling = Sampling(max_new_tokens=12)
    calls = [rows(QUESTION, routing=True), [Row("slim", LONGER, gate=GateSetting(0.5))], rows(TURNS)]
    alone = [list(engine.answer(asked, sampling)) for asked in calls]
    error = RuntimeError("a kernel for 0.5 is missing")
    break_forward(
        engine, monkeypatch, error, lambda answers: any(a.gate.strength == 0.5 and len(a.ids) > 2 for a in answers)
    )
    open_calls = [engine.answer(asked, sampling) for asked in calls]
    sentences = []

    def failing():
        try:
            yield from open_calls[1]
        except EngineError as error:
            sentences.append(str(error))

    received = drive([open_calls[0], failing(), open_calls[2]])
    assert sentences == ["The model failed while it answered: a kernel for 0.5 is missing."]
    assert_same(received[0], alone[0])
    assert_same(received[2], alone[2])
    assert last(engine, rows(QUESTION)).done


def test_rows_and_memory_bound_who_is_let_in(engine):
    probe = EngineProbe(engine)
    probe.most_rows(6)
    calls = [engine.answer(rows(QUESTION), Sampling(max_new_tokens=40)) for _ in range(3)]
    assert [next(call).place for call in calls] == [0, 0, 1]
    calls[0].close()
    assert next(calls[2]).place == 0
    for call in calls:
        call.close()
    # Three rows of at most 11 + 40 tokens, and as many again but one token.
    size = last(engine, rows(QUESTION)).rows[0].prompt_tokens + 40
    probe.most_rows(96, 6 * size - 3)
    calls = [engine.answer(rows(QUESTION), Sampling(max_new_tokens=n)) for n in (40, 40, 39)]
    assert next(calls[0]).place == 0
    assert next(calls[1]).place == 1 and next(calls[2]).place == 2
    calls[1].close()
    assert next(calls[2]).place == 0
    for call in calls:
        call.close()


def test_more_rows_than_there_is_room_for_are_let_in_alone(engine):
    EngineProbe(engine).most_rows(2)
    assert last(engine, rows(QUESTION)).done


def test_words_are_read_while_others_are_answered(engine):
    """Nobody waits for an evaluation, and an evaluation for nobody."""
    passage = Passage(QUESTION, "It is Lima.")
    (alone,) = engine.score([passage], ("base", "lora", "slim"), routing=True)
    expected = last(engine, rows(LONGER, routing=True), Sampling(max_new_tokens=30))
    engine.end_tokens = frozenset()
    writing = engine.answer(rows(LONGER, routing=True), Sampling(max_new_tokens=30))
    while next(writing).rows[0].tokens < 2:
        pass
    (beside,) = engine.score([passage], ("base", "lora", "slim"), routing=True)
    assert next(writing).rows[0].tokens < 30
    torch.testing.assert_close(beside.log_probs, alone.log_probs)
    assert beside.identity == alone.identity
    *_, step = writing
    for row, record in step.routing.items():
        many = expected.routing[row].weights.shape[1]
        torch.testing.assert_close(record.weights[:, :many], expected.routing[row].weights)
    assert EngineProbe(engine).in_line == 0


def test_a_reader_gets_its_turn_beside_a_busy_thread(engine, monkeypatch):
    engine.end_tokens = frozenset()
    stops, forward = Stops(3), Batch.forward
    monkeypatch.setattr(Batch, "forward", lambda batch: time.sleep(0.02) or forward(batch))
    thread = threading.Thread(
        target=lambda: list(engine.answer(rows(LONGER), Sampling(max_new_tokens=200), stops)), daemon=True
    )
    thread.start()
    until(lambda: EngineProbe(engine).in_line == 1)
    for _ in range(3):
        engine.score([Passage(QUESTION, "It is Lima.")], ("base", "slim"))
    assert thread.is_alive()
    stops.stop_all()
    thread.join(20)
    assert EngineProbe(engine).in_line == 0


def test_attaching_and_detaching_wait_until_nobody_is_answered(engine, folders):
    calls = [engine.answer(rows(m), Sampling(max_new_tokens=40)) for m in (QUESTION, LONGER)]
    for call in calls:
        next(call)
    thread = threading.Thread(target=lambda: engine.attach(folders.slim, name="late"))
    thread.start()
    until(lambda: EngineProbe(engine).in_line == 3)
    # Who comes later waits behind it.
    late = engine.answer([Row("late", QUESTION)], Sampling(max_new_tokens=4))
    assert next(late).place == 2
    assert engine.peek(Row("slim", QUESTION)) is None
    calls[0].close()
    for _ in calls[1]:
        assert "late" not in {variant.name for variant in engine.variants}
    thread.join(20)
    *_, step = late
    assert step.rows[0].error is None and step.rows[0].tokens > 0
    engine.detach("late")
    assert ids(last(engine, rows(QUESTION))) == ids(last(engine, rows(QUESTION), batched=False))


def test_a_variant_that_went_while_its_caller_waited_is_a_sentence(engine):
    EngineProbe(engine).one_at_a_time()
    first = engine.answer(rows(QUESTION), Sampling(max_new_tokens=40))
    next(first)
    thread = threading.Thread(target=lambda: engine.detach("lora"))
    thread.start()
    until(lambda: EngineProbe(engine).in_line == 2)
    second = engine.answer(rows(QUESTION), Sampling(max_new_tokens=4))
    next(second)
    first.close()
    thread.join(20)
    *_, step = second
    assert "no variant named 'lora'" in step.rows[1].error
    assert step.rows[0].error is None and step.rows[2].tokens > 0


def test_closing_ends_all_as_if_they_were_stopped(engine):
    calls = [engine.answer(rows(m), Sampling(max_new_tokens=200)) for m in (QUESTION, LONGER)]
    for _ in range(3):
        for call in calls:
            next(call)
    thread = threading.Thread(target=engine.close, args=("It is being switched.",))
    thread.start()
    for call in calls:
        *_, step = call
        assert [row.finish_reason for row in step.rows] == ["stopped"] * 3
    thread.join(20)
    with pytest.raises(EngineError, match="It is being switched"):
        last(engine, rows(QUESTION))
