# SPDX-License-Identifier: Apache-2.0
"""Another base in place of the one that answers, and what becomes of those who were asking."""

from __future__ import annotations

import gc
import shutil
import threading
import time
import weakref
from dataclasses import replace

import psutil
import pytest

from slim_core.base import loading
from slim_core.demo.chat import train_tokenizer
from slim_core.inference import BaseChoice, BaseSwitch, EngineError, Row, Sampling, open_base, switching
from tests.inference.conftest import LONGER, QUESTION, TEXTS, ids, last, rows, save_lora, tiny_base
from tests.inference.probe import EngineProbe, listen
from tests.outside.online import online
from tests.waiting import until


__all__ = ["online"]


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A second base, of another shape."""
    folder = tmp_path_factory.mktemp("other") / "second"
    tiny_base(hidden_size=48, num_hidden_layers=3).save_pretrained(folder)
    train_tokenizer(TEXTS).save_pretrained(folder)
    return folder


class World:
    """A switch, and what it has put in place."""

    def __init__(self, folders) -> None:
        self.first = BaseChoice(str(folders.base), name="First", lora=str(folders.lora), slim=str(folders.slim))
        self.engine = open_base(self.first, "cpu")
        self.stages: list[str] = []
        self.switch = BaseSwitch(self.engine, self.first, "cpu", self.put)

    def put(self, engine) -> None:
        self.engine = engine
        self.stages.append(self.switch.progress.stage)

    def go(self, choice: BaseChoice):
        self.switch.start(choice)
        return self.switch.wait(60)


@pytest.fixture
def world(folders) -> World:
    return World(folders)


def test_there_and_back_again(world, other):
    world.engine.keep_at_most(10**6)
    before = ids(last(world.engine, rows(QUESTION)))
    model = weakref.ref(EngineProbe(world.engine).base)
    progress = world.go(BaseChoice(str(other)))
    assert (progress.stage, progress.label) == ("done", "second")
    assert progress.sentence == "The base is second now; conversations and adapters were cleared."
    assert world.engine.info.blocks == 3 and [v.name for v in world.engine.variants] == ["base"]
    gc.collect()
    assert model() is None, "the old base is still in memory"
    assert world.stages == ["ending", "loading"] and world.switch.generation == 1
    assert last(world.engine, [Row("base", QUESTION)]).rows[0].tokens
    assert world.engine.kept_at_most == 10**6
    # The adapters of the first come back with it.
    world.go(world.first)
    assert world.engine.info.name == "First" and world.switch.generation == 2
    assert ids(last(world.engine, rows(QUESTION))) == before


def test_another_precision_of_the_same_base(world):
    before = ids(last(world.engine, rows(QUESTION)))
    world.go(replace(world.first, bits=4))
    assert world.engine.info.dtype == "4-bit nf4" and len(world.engine.variants) == 3
    world.go(world.first)
    assert world.engine.info.dtype == "float32" and ids(last(world.engine, rows(QUESTION))) == before


def test_answers_that_are_being_written_end_and_those_who_wait_are_told(world, other):
    outcomes, running = [], threading.Event()

    def write():
        for step in old.answer(rows(LONGER), Sampling(max_new_tokens=200)):
            if all(row.tokens >= 2 and row.text for row in step.rows):
                running.set()
            time.sleep(0.01)  # a slow reader: the answer is still being written when the base goes
        outcomes.append(step)

    def wait_in_line():
        try:
            list(old.answer(rows(QUESTION), Sampling(max_new_tokens=4)))
        except EngineError as error:
            outcomes.append(str(error))

    old = world.engine
    EngineProbe(old).one_at_a_time()
    threads = [threading.Thread(target=write), threading.Thread(target=wait_in_line)]
    threads[0].start()
    assert running.wait(60)
    threads[1].start()
    until(lambda: EngineProbe(old).in_line == 2)
    world.go(BaseChoice(str(other)))
    for thread in threads:
        thread.join(60)
    sentence = "The base is being switched to second; ask again when it is loaded."
    (step,) = [outcome for outcome in outcomes if not isinstance(outcome, str)]
    assert [row.finish_reason for row in step.rows] == ["stopped"] * 3
    assert all(0 < row.tokens < 200 and row.text for row in step.rows)
    assert sentence in outcomes
    # Whoever still holds the old engine is told the same.
    for ask in (
        lambda: list(old.answer(rows(QUESTION), Sampling())),
        lambda: old.detach("slim"),
        lambda: old.drift(QUESTION, [5], ["slim"]),
    ):
        with pytest.raises(EngineError, match="is being switched to second"):
            ask()


def test_while_there_is_none_everyone_is_told(world, other, monkeypatch):
    go_on, reading = threading.Event(), threading.Event()
    original = switching.read_base

    def slow(*args):
        reading.set()
        assert go_on.wait(60)
        return original(*args)

    monkeypatch.setattr(switching, "read_base", slow)
    world.switch.start(BaseChoice(str(other)))
    assert reading.wait(60)
    assert world.switch.progress.stage == "loading" and world.engine.info.name == "First"
    assert len(world.engine.variants) == 3 and world.engine.memory().model == 0
    for ask in (
        lambda: world.engine.answer(rows(QUESTION), Sampling()),
        lambda: world.engine.count_tokens(QUESTION),
        lambda: world.engine.drift(QUESTION, [5], ["slim"]),
        lambda: world.engine.attach("x"),
        lambda: world.engine.detach("slim"),
    ):
        with pytest.raises(EngineError, match="is being switched to second"):
            ask()
    with pytest.raises(EngineError, match="second is already being loaded"):
        world.switch.start(world.first)
    go_on.set()
    assert world.switch.wait(60).stage == "done"


def test_a_base_that_does_not_fit_leaves_everything_as_it_was(world, other, monkeypatch):
    before, engine = ids(last(world.engine, rows(QUESTION))), world.engine
    monkeypatch.setattr(loading, "device_memory", lambda device: (1000, 2_000_000))
    with pytest.raises(EngineError, match=r"second needs about .* free of 2\.0 MB"):
        world.switch.need(BaseChoice(str(other)))
    progress = world.go(BaseChoice(str(other)))
    assert progress.stage == "failed" and "second needs about" in progress.sentence
    assert world.engine is engine and not world.stages and world.switch.generation == 0
    assert ids(last(world.engine, rows(QUESTION))) == before


def test_what_the_old_base_gives_back_counts(world, other, monkeypatch):
    need = world.switch.need(BaseChoice(str(other))).total
    (bytes_held,) = world.engine.held.values()
    assert bytes_held >= sum(variant.bytes for variant in world.engine.variants)
    monkeypatch.setattr(loading, "device_memory", lambda device: (need - bytes_held, need))
    assert world.switch.need(BaseChoice(str(other))).total == need
    monkeypatch.setattr(loading, "device_memory", lambda device: (need - bytes_held - 1, need))
    with pytest.raises(EngineError, match="second needs about"):
        world.switch.need(BaseChoice(str(other)))


def test_a_base_that_breaks_while_it_is_loaded_brings_the_old_one_back(world, other, tmp_path):
    before = ids(last(world.engine, rows(QUESTION)))
    shutil.copytree(other, tmp_path / "broken")
    weights = tmp_path / "broken" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    progress = world.go(BaseChoice(str(tmp_path / "broken")))
    assert progress.stage == "failed" and str(tmp_path) not in progress.sentence
    assert "The base model broken cannot be loaded" in progress.sentence
    assert progress.sentence.endswith("First is loaded again; conversations and adapters were cleared.")
    assert ids(last(world.engine, rows(QUESTION))) == before and world.switch.generation == 1


def test_adapters_that_do_not_fit_bring_the_old_base_back(world, other, tmp_path):
    save_lora(tmp_path / "lora", tiny_base(hidden_size=16))
    progress = world.go(BaseChoice(str(other), lora=str(tmp_path / "lora")))
    assert progress.stage == "failed" and "First is loaded again" in progress.sentence
    assert len(world.engine.variants) == 3


def test_where_nothing_can_be_loaded_that_is_said(world, other, tmp_path, folders, monkeypatch):
    monkeypatch.setattr(switching, "read_base", lambda *args: (_ for _ in ()).throw(RuntimeError("it broke")))
    progress = world.go(BaseChoice(str(other)))
    assert progress.sentence == "Loading second failed: it broke. First could not be loaded again: it broke."
    with pytest.raises(EngineError, match=r"No base is loaded\. Loading second failed"):
        world.engine.answer(rows(QUESTION), Sampling())


def test_loading_can_be_stopped_before_the_old_base_goes(world, other, monkeypatch):
    original = switching.plan

    def stopped(*args, **kwargs):
        world.switch.stop()
        return original(*args, **kwargs)

    monkeypatch.setattr(switching, "plan", stopped)
    progress = world.go(BaseChoice(str(other)))
    assert progress.sentence == "Loading second was stopped." and len(world.engine.variants) == 3


def test_progress_counts_the_weights(world, other):
    reported = []
    listen(world.switch, reported)
    world.go(BaseChoice(str(other)))
    stages = list(dict.fromkeys(stage for stage, *_ in reported))
    assert stages == ["fetching", "ending", "loading", "done"]
    counted = [more for stage, *more in reported if stage == "loading" and more]
    assert len(counted) > 10 and counted == sorted(counted) and counted[-1][0] < counted[-1][1]


@pytest.mark.nightly
def test_going_back_and_forth_leaves_memory_where_it_was(world, other):
    process, sizes = psutil.Process(), []
    for _ in range(6):
        world.go(BaseChoice(str(other)))
        world.go(world.first)
        sizes.append(process.memory_info().rss)
    assert sizes[-1] - sizes[1] < 20_000_000
