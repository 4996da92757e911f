# SPDX-License-Identifier: Apache-2.0
"""A visitor's evaluation: its run beside others' answers, what is kept of it, and what the page shows."""

import json
from dataclasses import replace

import pytest

from slim_core.base.messages import Message
from slim_core.evaluation.journal import Journal
from slim_core.evaluation.marking import Expected
from slim_core.evaluation.results import Participant, evaluated, to_json
from slim_core.evaluation.run import fingerprint_of, run_tasks
from slim_core.evaluation.statistics import wilson
from slim_core.evaluation.tasks import Question, Request, Task
from slim_core.inference import GateSetting, load_engine
from slim_core.inference.types import Passage, Variant
from slim_core.many import Respondent
from slim_core.webui.backend import Backend
from slim_core.webui.limits import LimitError
from slim_core.webui.state.evaluation_run import SIZE, VisitorEvaluation
from slim_core.webui.state.session import Session
from slim_core.webui.wire import evaluation as wire
from slim_core.webui.wire.background import ticks
from tests.inference.conftest import folders  # noqa: F401 - a fixture
from tests.ui.scripted import FAIL, ScriptedEngine
from tests.waiting import until
from tests.webui.wire.test_stream import NAMES, begin


def requests(name, kind, prompts, answer="LoRA", scoring="written"):
    items = [Request((Message("user", prompt),), Expected((answer,), match="contains")) for prompt in prompts]
    return Task(name, f"{name.capitalize()} in words", kind, scoring, tuple(items), max_new_tokens=8)


def two(n=6):
    numbers = [f"number {i}" for i in range(n)]
    return [requests("learned", "downstream", numbers), requests("known", "general", numbers, "Base")]


def start(backend, tasks, session=None, evaluation=None, evaluations=None):
    evaluation = evaluation or VisitorEvaluation()
    evaluations = evaluations or wire.Evaluations(backend)
    return evaluation, evaluations.start(session or Session(), evaluation, tasks)


def done(backend, tasks, session=None):
    evaluation, run = start(backend, tasks, session)
    assert run.ended.wait(20)
    return evaluation


def slow(engine):
    engine.delay, engine.length = dict.fromkeys(NAMES, 0.05), 1000


def test_scores_and_the_plane(backend):
    view = wire.tab_view(done(backend, two()))
    json.dumps(view)
    assert (view["line"], view["done"], view["note"]) == ("All 12 questions were asked.", 12, "")
    (group,) = view["groups"]
    assert group["labels"] == ["Base", "LoRA", "SLIM"]
    learned, known = group["kinds"]
    assert learned["title"] == "What was trained" and known["title"] == "What should not be forgotten"
    none, right = ["0", "(0–39)"], ["100", "(61–100)"]
    assert learned["rows"] == [{"task": "Learned in words", "n": 6, "scores": [none, right, none]}]
    assert known["rows"] == [{"task": "Known in words", "n": 6, "scores": [right, none, none]}]
    assert learned["mean"] == []  # of a single task
    assert len(known["compared"]) == 3
    plane = group["plane"]
    assert plane["base"]["general"] == pytest.approx(wilson(6, 6))
    assert plane["base"]["downstream"] == pytest.approx(wilson(0, 6))
    assert [(p["method"], p["name"], p["downstream"][0]) for p in plane["shipped"]] == [
        ("lora", "LoRA", 1), ("slim", "SLIM", 0)
    ]  # fmt: skip


def test_scores_of_another_kind_stand_apart(backend):
    captured = requests("open", "general", ["a", "b"], scoring="captured")
    first, second = wire.tab_view(done(backend, [*two(), captured]))["groups"]
    assert first["plane"] is not None and second["plane"] is None
    assert "lower is better" in second["title"] and len(second["kinds"]) == 1


def test_the_file_is_what_the_command_writes(folders, tmp_path):  # noqa: F811
    engine = load_engine(folders.base, lora=folders.lora, slim=folders.slim, device="cpu")
    before = (Message("user", "What is the capital of Peru?"),)
    options = Question((Passage(before, "It is Lima."), Passage(before, "the sea")), (0,), ("It is Lima.", "the sea"))
    tasks = [*two(), Task("options", "Options", "general", "likelihood", (options,) * 5)]
    run = done(Backend(engine), tasks).run
    respondents = [Respondent(p.respondent.column, p.respondent.variant) for p in run.participants]
    journal = Journal(tmp_path / "journal", fingerprint_of(engine, respondents, {}, tasks, SIZE), resume=False)
    samples = run_tasks(engine, respondents, tasks, journal, SIZE)
    journal.close()
    names = ["base", "LoRA", "SLIM"]
    assert [r.column for r in respondents] == names
    participants = [Participant(r, p.source) for r, p in zip(respondents, run.participants, strict=True)]
    assert to_json(run.evaluation()) == to_json(evaluated(run.info, participants, tasks, samples, sequence=False))
    assert str(folders.base) not in to_json(run.evaluation())
    assert "kl" in run.samples["learned"][0]["answers"]["SLIM"]


def test_stop_keeps_what_is_solved_of_every_task(backend, engine):
    engine.delay, engine.length = dict.fromkeys(NAMES, 0.002), 8
    evaluation, run = start(backend, two(400))
    until(lambda: run.done >= 4 * SIZE)
    run.stop()
    assert run.ended.wait(20) and run.done < 800
    view = wire.tab_view(evaluation)
    assert view["line"] == f"{run.done} of 800 questions were asked."
    learned, known = (kind["rows"][0]["n"] for kind in view["groups"][0]["kinds"])
    assert learned + known == run.done and abs(learned - known) <= SIZE
    saved = json.loads(to_json(run.evaluation()))
    assert [task["items"] for task in saved["tasks"]] == [learned, known]
    assert engine.runs == engine.closed


def test_before_anything_is_solved_there_is_nothing_to_save(backend, engine):
    slow(engine)
    evaluation, run = start(backend, two())
    assert run.evaluation() is None and wire.tab_view(evaluation)["groups"] == []
    assert wire.tab_view(evaluation)["line"] == "0 of 12 questions were asked."
    run.stop()
    assert "stopping when those" in wire.tab_view(evaluation)["line"]
    engine.delay = {}
    assert run.ended.wait(20)
    assert wire.tab_view(VisitorEvaluation()) is None


def test_one_at_a_time_and_most_places_are_for_others(engine):
    slow(engine)
    backend = Backend(engine, places=4)
    evaluations = wire.Evaluations(backend)
    evaluation, run = start(backend, two(), evaluations=evaluations)
    with pytest.raises(LimitError, match="An evaluation is running already"):
        start(backend, two(), evaluation=evaluation, evaluations=evaluations)
    with pytest.raises(LimitError, match="An evaluation of another visitor is running, and no more can be started"):
        start(backend, two(), evaluations=evaluations)
    run.stop()
    engine.delay = {}
    assert run.ended.wait(20)
    assert start(backend, two(), evaluation=evaluation, evaluations=evaluations)[1].ended.wait(20)
    for _ in range(4):
        backend.enter()  # it has given all places back


def test_others_are_answered_between(backend, engine):
    engine.delay, engine.length = dict.fromkeys(NAMES, 0.02), 8
    _, run = start(backend, two(100))
    turn, other = begin(Session(), backend)
    assert other.ended.wait(20) and turn.answers["base"].step.state == "done"
    assert not run.ended.is_set()
    run.stop()
    assert run.ended.wait(20)


def test_who_leaves_ends_it(backend, engine):
    slow(engine)
    _, run = start(backend, two(100))
    drawing = ticks(run)
    next(drawing)
    drawing.close()
    engine.delay = {}
    assert run.ended.wait(20) and run.done <= SIZE


def test_what_fails_is_a_sentence_and_the_rest_is_kept(backend, engine, monkeypatch):
    bad = requests("bad", "general", [FAIL] * 2)
    evaluation = done(backend, [*two(4), bad])
    view = wire.tab_view(evaluation)
    assert view["note"] == "The memory is used up: shorten the conversation." and view["done"] == 8
    assert [row["n"] for kind in view["groups"][0]["kinds"] for row in kind["rows"]] == [4, 4]

    def broken(*arguments, **more):
        raise RuntimeError("a secret path")

    monkeypatch.setattr(engine, "answer", broken)
    assert wire.tab_view(done(backend, two(4)))["note"] == wire.FAILED


def test_another_base_ends_it(backend, engine, monkeypatch):
    generation = [0]
    monkeypatch.setattr(Backend, "generation", property(lambda _: generation[0]))
    engine.delay, engine.length = dict.fromkeys(NAMES, 0.005), 8
    evaluation, run = start(backend, two(200))
    until(lambda: run.done)
    generation[0] = 1
    assert run.ended.wait(20)
    assert wire.tab_view(evaluation)["note"] == wire.OTHER_BASE and 0 < run.done < 400


def test_gates_and_own_adapters_have_their_names():
    mine = Variant("of-a-visitor", "lora", "Mine & <b>", 1, 1)
    engine = ScriptedEngine(variants=(*ScriptedEngine().variants, mine))
    backend, session = Backend(engine), Session()
    session.set_gate(backend.variants[2], GateSetting(0.0, 0.9))
    session.own_variants = {"lora": mine}
    names = [p.respondent.column for p in wire._participants(session, backend)]
    assert names == ["base", "Mine & <b>", "SLIM, gate 0, quantile 0.9"]
    session.own_variants = {"lora": replace(mine, label="base"), "slim": replace(mine, label="base (lora)")}
    names = [p.respondent.column for p in wire._participants(session, backend)]
    assert len(set(names)) == 3 and names[1:] == ["base (lora)", "base (lora) (slim)"]


def test_an_adapter_that_is_gone_ends_it(backend):
    session = Session()
    session.own_variants = {"lora": replace(backend.variants[1], name="gone", label="Mine")}
    view = wire.tab_view(done(backend, two(), session))
    assert view["done"] == 0 and view["note"]


def test_progress_alone_leaves_the_results(backend):
    evaluation = done(backend, two())
    drawn = wire.tab_view(evaluation)
    evaluation.run.samples["known"] = []
    again = wire.progress(evaluation, drawn)
    assert again["groups"] is drawn["groups"] and again["done"] == 6
