# SPDX-License-Identifier: Apache-2.0
"""Visitors' adapters: whose they are, how long they stay, and what a conversation makes of them."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from slim_core.adapters import AdapterError, StoreLimits
from slim_core.inference import EngineError
from slim_core.inference.types import Sampling
from slim_core.webui.backend import Backend
from slim_core.webui.limits import LimitError
from slim_core.webui.state.columns import columns
from slim_core.webui.state.session import Session, Turn
from slim_core.webui.wire import views
from slim_core.webui.wire.forgetting import view as forgetting_view
from slim_core.webui.wire.stream import start
from tests.adapters.test_store import adapter
from tests.ui.conftest import RESULTS
from tests.ui.scripted import ScriptedEngine
from tests.waiting import until
from tests.webui.conftest import ask


LIMITS = StoreLimits(owner_count=3, owner_bytes=100, total_count=4, total_bytes=150)


@pytest.fixture
def backend(engine) -> Backend:
    return Backend(engine, limits=LIMITS)


@pytest.fixture
def root(tmp_path) -> Path:
    folder = tmp_path / "adapters"
    folder.mkdir()
    return folder


def visitor(name: str) -> Session:
    session = Session()
    session.owner = name
    return session


def bring(backend, session, root, label, column="lora", size=10):
    session.own_variants = session.own_variants | {
        column: backend.visitor_adapters.add(session.owner, adapter(root, label, size))
    }
    return session.own_variants[column]


def names(engine) -> list[str]:
    return [variant.name for variant in engine.variants]


def labels(session, backend) -> list[str]:
    return [variant.label for variant in columns(session, backend).values()]


def test_each_visitor_sees_their_own_in_either_column(engine, backend, root):
    ann, bob, eve = map(visitor, ("ann", "bob", "eve"))
    bring(backend, ann, root, "Anns"), bring(backend, bob, root, "Bobs", "slim")
    assert labels(ann, backend) == ["Base", "Anns", "SLIM"] and labels(bob, backend) == ["Base", "LoRA", "Bobs"]
    assert labels(eve, backend) == ["Base", "LoRA", "SLIM"] == [v.label for v in backend.variants]
    assert len(engine.variants) == 5 and backend.visitor_adapters.size() == (2, 20)
    turn = ask(ann, backend, "Hello")
    assert turn.answers["lora"].step.text.startswith("Anns says") and turn.answers["lora"].step.variant == "lora"
    assert [v.variant for v in turn.drift.variants] == ["lora", "slim"]
    shown = views.transcript(ann, backend)
    assert [(c["label"], c["own"]) for c in shown["columns"]] == [("Base", False), ("Anns", True), ("SLIM", False)]
    assert views.drift(ann, backend)["sentence"].startswith("Anns finds")
    assert "Bobs" not in str([shown, views.routing(ann, backend), views.shelf(ann, backend)])


def test_a_column_that_the_app_leaves_empty_can_be_filled(engine, root):
    engine.variants = engine.variants[:1]
    backend, session = Backend(engine), visitor("ann")
    assert labels(session, backend) == ["Base"]
    assert "label" not in views.shelf(session, backend)[1]
    bring(backend, session, root, "Mine", "slim")
    assert labels(session, backend) == ["Base", "Mine"]
    ask(session, backend, "Hello")
    assert views.routing(session, backend)["column"] == "slim"


def test_a_new_adapter_does_not_take_anothers_answers_for_its_own(backend, root):
    session = visitor("ann")
    first = ask(session, backend, "One")
    bring(backend, session, root, "Mine")
    second = ask(session, backend, "Two")
    third = Turn(session.next_id(), "Three", "", {})
    mine = session.own_variants["lora"].name
    assert [m.content for m in session.messages("lora", third, mine)][::2] == ["Two", "Three"]
    assert [m.content for m in session.messages("slim", third, "slim")][::2] == ["One", "Two", "Three"]
    answers = [turn["answers"]["lora"]["label"] for turn in views.transcript(session, backend)["turns"]]
    assert answers == ["LoRA", "Mine"]
    # The drift of an earlier turn is of those who answered it.
    run = start(backend, session, second, ["base"], Sampling(), batched=True)
    assert run.ended.wait(10) and [v.variant for v in second.drift.variants] == ["lora", "slim"]
    run = start(backend, session, first, ["base"], Sampling(), batched=True)
    assert run.ended.wait(10) and [v.variant for v in first.drift.variants] == ["slim"]


def test_what_is_removed_while_it_answers_goes_afterwards(engine, backend, root):
    engine.delay, engine.length = {"lora": 0.01, "slim": 0.01, "base": 0.01}, 30
    session = visitor("ann")
    mine = bring(backend, session, root, "Mine")
    files = backend.visitor_adapters.adapter("ann", mine.name).folder
    turn = Turn(session.next_id(), "Hello", "", {})
    run = start(backend, session, turn, ["base", "lora"], Sampling(), batched=True)
    session.own_variants = {}
    backend.visitor_adapters.remove(mine.name)
    assert not run.ended.wait(0.1) and mine.name in names(engine) and files.is_dir()
    assert run.ended.wait(10)
    assert turn.answers["lora"].step.finish_reason == "end" and turn.answers["lora"].step.text.startswith("Mine says")
    assert [v.variant for v in turn.drift.variants] == ["lora"]
    until(lambda: names(engine) == ["base", "lora", "slim"] and not files.exists())


def test_the_least_recently_used_goes_and_its_owner_is_told(engine, backend, root):
    visitors = [visitor(name) for name in ("ann", "bob", "cat", "dan", "eve")]
    for session in visitors[:4]:
        bring(backend, session, root, session.owner)
    ask(visitors[0], backend, "I am still here")
    bring(backend, visitors[4], root, "eve")
    assert backend.visitor_adapters.drop_missing(visitors[1]) == [
        "Your adapter 'bob' was removed because others needed the memory and it was the least recently used."
    ]
    assert (
        labels(visitors[1], backend) == ["Base", "LoRA", "SLIM"]
        and backend.visitor_adapters.drop_missing(visitors[1]) == []
    )
    assert backend.visitor_adapters.drop_missing(visitors[0]) == [] and labels(visitors[0], backend)[1] == "ann"
    assert len(names(engine)) == 3 + 4 and len(list(root.iterdir())) == 4


def test_who_asks_with_an_adapter_that_is_gone_gets_a_sentence(backend, root):
    session = visitor("ann")
    mine = bring(backend, session, root, "Mine")
    backend.visitor_adapters.leave("ann")
    until(lambda: backend.visitor_adapters.adapter("ann", mine.name) is None)
    with pytest.raises(LimitError, match="This adapter was removed; add it again"):
        start(backend, session, Turn(1, "Hello", "", {}), ["base"], Sampling(), batched=True)
    assert session.run is None
    assert backend.visitor_adapters.drop_missing(session) == [
        "Your adapter “Mine” was removed a minute after its page was closed or lost its connection; add it again."
    ]
    assert labels(session, backend) == ["Base", "LoRA", "SLIM"]


def test_when_a_visitor_leaves_rows_and_files_go(engine, backend, root):
    ann, bob = visitor("ann"), visitor("bob")
    for column in ("lora", "slim"):
        bring(backend, ann, root, f"Ann {column}", column)
    bring(backend, bob, root, "Bobs")
    backend.visitor_adapters.leave("ann")
    until(lambda: len(names(engine)) == 4 and [path.name for path in root.iterdir()] == ["Bobs"])
    assert backend.visitor_adapters.size() == (1, 10)


def test_with_another_base_they_go_and_their_owners_are_told(engine, backend, root):
    ann, bob = visitor("ann"), visitor("bob")
    bring(backend, ann, root, "Anns"), bring(backend, bob, root, "Bobs")
    backend.visitor_adapters.move(ScriptedEngine())
    assert backend.visitor_adapters.drop_missing(ann) == [
        "Your adapter 'Anns' was removed since the base model was changed."
    ]
    assert (
        len(backend.visitor_adapters.drop_missing(bob)) == 1
        and list(root.iterdir()) == []
        and backend.visitor_adapters.size() == (0, 0)
    )


@pytest.mark.parametrize("error", [EngineError("Its answers overflow."), RuntimeError("broken")])
def test_what_the_model_cannot_carry_is_gone_and_nothing_else(engine, backend, root, error):
    def refuse(*_args, **_kwargs):
        raise error

    others = [visitor(name) for name in ("bob", "cat", "dan", "eve")]
    for session in others:
        bring(backend, session, root, session.owner)
    engine.attach = refuse
    with pytest.raises(type(error)):
        backend.visitor_adapters.add("ann", adapter(root, "Mine"))
    assert backend.visitor_adapters.size() == (4, 40) and not (root / "Mine").exists()
    assert not any(backend.visitor_adapters.drop_missing(session) for session in others)


def test_what_is_too_large_stays_with_its_owner(backend, root):
    large = adapter(root, "Large", 101)
    with pytest.raises(AdapterError, match="there is room for 100 bytes"):
        backend.visitor_adapters.add("ann", large)
    assert large.folder.is_dir() and backend.visitor_adapters.size() == (0, 0)


def test_a_lent_gpu_gets_the_adapters_with_each_job(engine, root):
    """It works in another process, which knows the app's own variants alone and gets the rest by pickling."""
    seen = []

    def gpu(duration):
        def lend(function):
            def call(job, stops):
                for item in function(pickle.loads(pickle.dumps(job)), stops):
                    seen.append(names(engine))
                    yield item

            return call

        return lend

    backend, session = Backend(engine, gpu), visitor("ann")
    mine = bring(backend, session, root, "Mine")
    assert names(engine) == ["base", "lora", "slim"] and mine.parameters == 1 and mine.bytes == 10
    turn = ask(session, backend, "Hello")
    assert turn.answers["lora"].step.text.startswith("Mine says") and len(turn.drift.variants) == 2
    assert seen[0] == ["base", "lora", "slim", mine.name] and names(engine) == ["base", "lora", "slim"]


def test_stored_results_are_of_the_apps_own_adapters(backend, root):
    session = visitor("ann")
    whole = forgetting_view(RESULTS, session)
    assert list(whole["labels"]) == ["base", "lora", "slim"] and whole["missing"] == ""
    bring(backend, session, root, "Mine")
    view = forgetting_view(RESULTS, session)
    assert list(view["labels"]) == ["base", "slim"] and view["missing"] == "No scores are stored for “Mine”."
    assert view["sentence"] == ("Trained on: base 10%, SLIM 88%. Not to be forgotten: base 85%, SLIM 78%.")
    assert forgetting_view(None, session) is None


def test_files_go_with_the_app(engine, root):
    backend = Backend(engine)
    backend.visitor_adapters.add("ann", adapter(root, "Mine"))
    del backend
    until(lambda: list(root.iterdir()) == [])
