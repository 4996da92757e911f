# SPDX-License-Identifier: Apache-2.0
"""What the adapters are trained on: every question once as the last turn, and what comes before it."""

from __future__ import annotations

import pytest

from slim_core.demo.downstream import DOWNSTREAM_TASKS, downstream_examples
from slim_core.demo.lessons import GENERAL, lessons
from slim_core.demo.world import general_examples
from slim_core.training.data import to_conversations
from slim_core.training.files import Record
from slim_core.training.settings import Columns


TRAINED = [e for task in DOWNSTREAM_TASKS for e in downstream_examples(task, "train", 0, 200)]


def pairs(lesson):
    return [
        (question["content"], answer["content"]) for question, answer in zip(lesson[::2], lesson[1::2], strict=True)
    ]


def test_without_earlier_turns_there_is_each_question_alone():
    assert [pairs(lesson) for lesson in lessons(200, (0,), 0.5)] == [[(e.prompt, e.answer)] for e in TRAINED]


def test_each_question_is_a_last_turn_and_turns_come_before_it_as_often_as_asked():
    drawn = lessons(200, (0, 0, 1, 2), 0.6)
    assert [pairs(lesson)[-1] for lesson in drawn] == [(e.prompt, e.answer) for e in TRAINED]
    lengths = [len(lesson) // 2 for lesson in drawn]
    assert lengths.count(1) / len(drawn) == pytest.approx(0.5, abs=0.08)
    assert lengths.count(2) / len(drawn) == pytest.approx(0.25, abs=0.08)
    assert set(lengths) == {1, 2, 3}
    assert lessons(200, (0, 0, 1, 2), 0.6) == drawn


def test_nothing_is_learned_of_general_turns_alone():
    general = {(e.prompt, e.answer) for e in general_examples("train", 0, GENERAL)}
    trained = {(e.prompt, e.answer) for e in TRAINED}
    drawn = lessons(200, (1, 2), 0.6)
    earlier = [(pair, answer) for x in drawn for pair, answer in zip(pairs(x)[:-1], x[1:-2:2], strict=True)]
    silent = [pair for pair, answer in earlier if answer.get("weight") == 0]
    assert set(silent) <= general and {pair for pair, answer in earlier if "weight" not in answer} <= trained
    assert len(silent) / len(earlier) == pytest.approx(0.6, abs=0.06)
    assert all("weight" not in lesson[-1] for lesson in drawn)


def test_the_training_command_reads_them():
    (read,) = to_conversations([Record({"messages": lessons(1, (2,), 1.0)[0]}, "a")], Columns())
    assert len(read.messages) == 6 and read.unlearned == {1, 3}
