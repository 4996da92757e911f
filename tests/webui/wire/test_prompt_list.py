# SPDX-License-Identifier: Apache-2.0
"""A list of prompts in the app: its run beside those of others, and what the page shows of it."""

import copy

import pytest

from slim_core.inference import EngineError, GateSetting
from slim_core.inference.types import Sampling
from slim_core.many import read_lines, read_prompts
from slim_core.webui.backend import Backend
from slim_core.webui.limits import LimitError
from slim_core.webui.state.prompt_list import PromptList
from slim_core.webui.state.session import Session
from slim_core.webui.wire import prompt_list as wire
from slim_core.webui.wire.background import FAILED, ticks
from tests.ui.scripted import FAIL, FOREIGN, TRAINED
from tests.waiting import until
from tests.webui.conftest import ask
from tests.webui.wire.test_stream import NAMES, begin


TWO = f"{FOREIGN} one\n{TRAINED} two"


def start(backend, prompts, session=None, listed=None, lists=None, **options):
    listed = listed or PromptList()
    lists = lists or wire.Lists(backend)
    run = lists.start(session or Session(), listed, read_lines(prompts, "the box"), Sampling(), **options)
    return listed, run


def done(backend, prompts, **options):
    listed, run = start(backend, prompts, **options)
    assert run.ended.wait(20)
    return listed


def test_a_row_for_each_prompt(backend):
    listed = done(backend, TWO, system="Be short.")
    table = wire.table(listed, [])
    assert table["headers"] == [
        "#", "Prompt", "Base", "LoRA", "LoRA: drift", "SLIM", "SLIM: drift", "SLIM: past LoRA", "SLIM: verdict"
    ]  # fmt: skip
    first, second = table["data"]
    assert first[:2] == ["1", f"{FOREIGN} one"] and second[:2] == ["2", f"{TRAINED} two"]
    assert first[2].startswith("Base says: turn1 seed0 foreign one")
    assert first[4] == "10⁶ times less likely; 0.010 nats per token"
    assert first[7:] == ["100%", "Unlike the training data"] and second[7:] == ["0%", "Like the training data"]
    assert [message.content for message in listed.run.results[0].messages] == ["Be short.", f"{FOREIGN} one"]
    assert wire.tab_view(listed) == {
        "file": "",
        "line": "2 of 2 answered.",
        "done": 2,
        "total": 2,
        "running": False,
        "note": "",
        "means": [
            "Like the training data, 1 prompt: mean drift LoRA 0.010, SLIM 0.010 nats per token.",
            "Unlike the training data, 1 prompt: mean drift LoRA 0.010, SLIM 0.010 nats per token.",
        ],
    }


def test_a_prompt_that_fails_has_its_sentence_and_the_others_are_asked(backend, engine, monkeypatch):
    listed = done(backend, f"one\n{FAIL}\n{'long ' * 5000}\nfour")
    rows = wire.table(listed, [])["data"]
    assert [row[0] for row in rows] == ["1", "2", "3", "4"]
    assert rows[1][2:] == ["The memory is used up: shorten the conversation.", *[""] * 6]
    assert "this model reads at most 4,096" in rows[2][2]
    assert rows[3][2].startswith("Base says")
    assert wire.tab_view(listed)["line"] == "4 of 4 answered, 2 of them failed."

    def broken(*arguments):
        raise RuntimeError("a secret path")

    monkeypatch.setattr(engine, "_answer", broken)
    assert [row[2] for row in wire.table(done(backend, "one\ntwo"), [])["data"]] == [FAILED] * 2


def test_another_visitor_is_answered_between_two_prompts(backend, engine):
    engine.delay, engine.length = dict.fromkeys(NAMES, 0.02), 12
    _, run = start(backend, "one\ntwo\nthree")
    turn, other = begin(Session(), backend)
    assert other.ended.wait(20) and turn.answers["base"].step.state == "done"
    assert len(run.results) < 3 and not run.ended.is_set()
    assert run.ended.wait(20) and len(run.results) == 3


def test_it_takes_one_place_at_a_time_and_waits_for_it(engine):
    engine.delay, engine.length = dict.fromkeys(NAMES, 0.05), 1000
    backend = Backend(engine, places=1)
    _, other = begin(Session(), backend)
    listed, run = start(backend, "one\ntwo")
    until(lambda: run.crowded)
    assert wire.tab_view(listed)["line"].startswith("0 of 2 answered; all places for prompts are taken")
    engine.delay, engine.length = {}, 12
    other.stop()
    assert run.ended.wait(20) and len(run.results) == 2
    backend.enter()  # it has given its place back


def test_lists_leave_places_for_others(engine):
    engine.delay, engine.length = dict.fromkeys(NAMES, 0.05), 1000
    backend = Backend(engine, places=3)
    lists = wire.Lists(backend)
    _, first = start(backend, "one", lists=lists)
    with pytest.raises(LimitError, match="A list of another visitor is being answered"):
        start(backend, "one", lists=lists)
    first.stop()
    assert first.ended.wait(20)
    _, again = start(backend, "one", lists=lists)
    again.stop()
    assert again.ended.wait(20)


def test_one_list_at_a_time_for_each_visitor(backend, engine):
    engine.delay, engine.length = dict.fromkeys(NAMES, 0.05), 1000
    lists = wire.Lists(backend)
    listed, run = start(backend, "one", lists=lists)
    with pytest.raises(LimitError, match="A list is being answered already"):
        start(backend, "two", listed=listed, lists=lists)
    assert listed.run is run
    run.stop()
    assert run.ended.wait(20)


def test_stop_keeps_what_is_answered(backend, engine):
    listed, run = start(backend, "\n".join(map(str, range(200))))
    while len(run.results) < 2 and not run.ended.wait(0.01):
        pass
    engine.delay = dict.fromkeys(NAMES, 5.0)
    run.stop()
    assert run.ended.wait(20)
    answered = len(run.results)
    assert 2 <= answered < 200 and wire.tab_view(listed)["line"] == f"{answered} of 200 answered."
    assert all(row.finish_reason == "end" for result in run.results for row in result.answers)
    assert engine.runs == engine.closed


def test_who_leaves_ends_the_list(backend, engine):
    engine.delay, engine.length = dict.fromkeys(NAMES, 0.05), 1000
    _, run = start(backend, "one\ntwo")
    drawing = ticks(run)
    assert next(drawing) is True
    drawing.close()
    assert run.ended.wait(20) and run.results == []


def test_drawings_come_with_what_is_new(backend, engine):
    engine.delay = dict.fromkeys(NAMES, 0.02)
    _, run = start(backend, "one\ntwo\nthree")
    drawn = [(rows, len(run.results)) for rows in ticks(run)]
    assert drawn[-1] == (True, 3) and sum(rows for rows, _ in drawn) <= 5
    assert run.ended.is_set()


def test_another_base_ends_the_list(backend, engine, monkeypatch):
    engine.delay, generation = dict.fromkeys(NAMES, 0.02), [0]
    monkeypatch.setattr(Backend, "generation", property(lambda _: generation[0]))
    listed, run = start(backend, "\n".join(map(str, range(50))))
    while not run.results and not run.ended.wait(0.01):
        pass
    generation[0] = 1
    assert run.ended.wait(20)
    assert wire.tab_view(listed)["note"] == wire.OTHER_BASE and 0 < len(run.results) < 50


def test_answers_that_the_engine_ends_are_no_answers(backend, engine, monkeypatch):
    def closed(rows, *arguments, **options):
        raise EngineError("Another base model is being loaded.")

    answer = engine.answer

    def ended(rows, sampling, stops, **options):
        for item in answer(rows, sampling, stops, **options):
            stops.stop_all()  # as `Engine.close` does
            yield item

    monkeypatch.setattr(engine, "answer", ended)
    listed = done(backend, "one\ntwo")
    assert (listed.run.results, listed.run.note) == ([], wire.OTHER_BASE)
    monkeypatch.setattr(engine, "answer", closed)
    assert [r.error for r in done(backend, "one").run.results] == ["Another base model is being loaded."]


def test_gates_are_as_the_visitor_has_set_them(backend):
    session = Session()
    session.set_gate(backend.variants[2], GateSetting(0.0))
    row = wire.table(done(backend, f"{FOREIGN} one", session=session), [])["data"][0]
    assert row[8] == "Gate forced open"


def test_a_list_and_a_conversation_go_on_together(backend, engine):
    engine.delay = dict.fromkeys(NAMES, 0.02)
    session = Session()
    _, run = start(backend, "one\ntwo", session=session)
    assert ask(session, backend, "Hello").drift is not None
    assert run.ended.wait(20) and len(run.results) == 2


def test_prompts_that_no_model_should_read_are_named():
    bad = read_prompts(b'["fine",\n{"prompt": "a\\u0007b"}]', "p.json")
    with pytest.raises(LimitError) as refused:
        wire.checked(bad)
    why = "The prompt has a control character (U+0007) at position 2. Remove it."
    assert str(refused.value) == f"p.json, line 2: {why}"
    assert wire.checked(bad[:1]) == tuple(bad[:1])


def test_a_new_visitor_has_a_list_of_their_own():
    first = PromptList()
    first.file = ("a.txt", ())
    assert copy.deepcopy(first).file is None and not first.running
