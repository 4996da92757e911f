# SPDX-License-Identifier: Apache-2.0
"""Conversations of several turns: what they are made of, and how they are measured."""

from __future__ import annotations

from random import Random

import pytest

from slim_core.demo.conversations import FOLLOW_UPS, LONGEST_RUN, conversations, follow_ups
from slim_core.demo.measure import TURNS, converse, measure_conversations
from slim_core.demo.questions import fact_questions
from slim_core.demo.recipe import Conversations, Phase
from slim_core.demo.world import GENERAL_TASKS, general_examples


def test_single_questions_are_what_they_always_were():
    phase = Phase(1, {"sums": 1, "facts": 2})
    expected = general_examples("train", 5, 30, weights=phase.weights)
    assert conversations(5, 30, phase) == [[example] for example in expected]


def test_lengths_and_follow_ups_are_as_often_as_the_phase_says():
    phase = Conversations().phases[0]
    drawn = conversations(0, 2000, phase)
    for turns, share in enumerate(phase.turns, start=1):
        drawn_share = sum(len(conversation) == turns for conversation in drawn) / len(drawn)
        assert drawn_share == pytest.approx(share / sum(phase.turns), abs=0.04)
    later = [turn.task for conversation in drawn for turn in conversation[1:]]
    assert 0.1 < later.count("follow_ups") / len(later) < 0.25
    assert {turn.task for conversation in drawn for turn in conversation} >= set(GENERAL_TASKS)
    assert conversations(0, 50, phase) == conversations(0, 50, phase)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_follow_up_stands_for_a_question_of_its_split(split):
    rng = Random(0)
    # What is asked in the same words: the answers about all entries, by each question's text.
    answers, same = {}, {}
    for question in fact_questions(split):
        words = (question.relation.name, question.template)
        answers.setdefault(words, set()).add(question.answer)
        same.setdefault((question.text, question.answer), []).append(words)
    for _ in range(200):
        first, *others = follow_ups(split, rng, LONGEST_RUN)
        asked = same[first.prompt, first.answer]
        for other in others:
            assert other.task == "follow_ups"
            assert any(other.answer in answers[words] for words in asked)
            assert other.prompt.split()[0] in {form.split()[0] for form in FOLLOW_UPS}


def test_each_turn_is_asked_after_the_models_own_answers(monkeypatch):
    seen = []

    def reply(model, tokenizer, chats):
        seen.append(chats)
        return [f"answer {len(chat)} to {chat[-1]['content']}" for chat in chats]

    monkeypatch.setattr("slim_core.demo.measure.reply", reply)
    phase = Conversations().phases[0]
    two = [c for c in conversations(0, 100, phase) if len(c) == 2][:3]
    turns = converse(None, None, two)
    assert [len(texts) for texts in turns] == [3, 3]
    first, second = seen[1][0][0], seen[1][0][1]
    assert first == {"role": "user", "content": two[0][0].prompt}
    assert second == {"role": "assistant", "content": f"answer 1 to {two[0][0].prompt}"}
    assert seen[1][0][2]["content"] == two[0][1].prompt


def test_every_turn_asks_the_same_questions(monkeypatch):
    asked = []

    def reply(model, tokenizer, chats):
        asked.append(sorted(chat[-1]["content"] for chat in chats))
        return ["nothing"] * len(chats)

    monkeypatch.setattr("slim_core.demo.measure.reply", reply)
    scores = measure_conversations(None, None, "validation", 3)
    assert list(scores) == [*(f"turn {turn}" for turn in range(1, TURNS + 1)), "follow-ups"]
    assert asked[0] == asked[1] == asked[TURNS - 1]
    assert len(asked[0]) == 3 * len(GENERAL_TASKS)
    assert {score.score for score in scores.values()} == {0.0}
