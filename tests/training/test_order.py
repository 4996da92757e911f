# SPDX-License-Identifier: Apache-2.0
"""Examples of like length share a step, each is seen once an epoch, and a resumed run goes on in the same order."""

from __future__ import annotations

import json
from random import Random

import pytest

from slim_core.training import train
from slim_core.training.order import GroupedByLength
from slim_core.training.trainer import SlimTrainer
from tests.training.conftest import settings
from tests.training.test_run import At, Crash


STEP = 4


def lengths(n: int) -> list[int]:
    return [Random(i).randrange(5, 200) for i in range(n)]


def steps_of(order: list[int]) -> list[list[int]]:
    return [order[i : i + STEP] for i in range(0, len(order), STEP)]


def padding(order: list[int], of: list[int]) -> int:
    return sum(max(of[i] for i in step) * len(step) - sum(of[i] for i in step) for step in steps_of(order))


@pytest.mark.parametrize("n", [3, 4, 17, 400, 403])
def test_each_example_is_seen_once(n):
    assert sorted(GroupedByLength(STEP, lengths(n), 0)) == list(range(n))


def test_a_step_holds_examples_of_like_length():
    of = lengths(400)
    shuffled = Random(0).sample(range(400), 400)
    assert padding(list(GroupedByLength(STEP, of, 0)), of) < padding(shuffled, of) / 10


def test_short_and_long_steps_take_turns():
    of = lengths(400)
    means = [sum(of[i] for i in step) / STEP for step in steps_of(list(GroupedByLength(STEP, of, 0)))]
    for part in range(0, len(means), 20):
        assert min(means[part : part + 20]) < 60 and max(means[part : part + 20]) > 140


def test_the_order_depends_on_seed_and_epoch_alone():
    of = lengths(100)
    sampler = GroupedByLength(STEP, of, 7)
    first = list(sampler)
    assert list(sampler) == first == list(GroupedByLength(STEP, of, 7))
    assert list(GroupedByLength(STEP, of, 8)) != first
    sampler.set_epoch(1)
    second = list(sampler)
    assert second != first
    other = GroupedByLength(STEP, of, 7)
    other.set_epoch(1)
    assert list(other) == second


def test_a_run_resumed_in_its_second_epoch_sees_what_the_other_saw(base, tmp_path, monkeypatch):
    data = tmp_path / "pairs.jsonl"
    rows = [{"prompt": "a b " * (1 + i % 7), "completion": f"c{i}"} for i in range(16)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    seen: list[bytes] = []
    step = SlimTrainer.training_step

    def spy(self, model, inputs, *args):
        seen.append(inputs["input_ids"].numpy().tobytes())
        return step(self, model, inputs, *args)

    monkeypatch.setattr(SlimTrainer, "training_step", spy)
    asked = {"batch_size": 4, "max_steps": 8, "validation_share": 0.0, "save_every": 2, "group_by_length": True}
    train(settings(base, data, tmp_path / "whole", **asked))
    whole = list(seen)
    assert len(whole) == 8 and whole[:4] != whole[4:]
    seen.clear()
    with pytest.raises(Crash):
        train(settings(base, data, tmp_path / "out", **asked), callbacks=[At(7, Crash)])
    del seen[6:]
    train(settings(base, data, tmp_path / "out", **asked, resume=True))
    assert seen == whole
