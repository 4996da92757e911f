# SPDX-License-Identifier: Apache-2.0
"""Scores: the interval, the questions, and that an answer is what the model writes alone."""

from __future__ import annotations

import pytest
import torch

from slim_core.demo.measure import TASKS, answers, mean, measure, questions, wilson
from slim_core.demo.pretrain import new_base


def test_wilson_interval_against_the_textbook():
    # Newcombe 1998, table I: 81 of 263 and 0 of 20.
    assert wilson(81, 263) == pytest.approx((0.3080, 0.2553, 0.3662), abs=1e-4)
    assert wilson(0, 20) == pytest.approx((0.0, 0.0, 0.1611), abs=1e-4)
    assert wilson(20, 20).high == 1.0
    assert wilson(81, 263, z=3).low < wilson(81, 263).low


@pytest.mark.parametrize("task", TASKS)
def test_questions_are_distinct_and_stay_the_same(task):
    asked = questions(task, "test", 60)
    assert len({e.prompt for e in asked}) == 60
    assert asked == questions(task, "test", 60)
    assert {e.task for e in asked} == {task}


def test_answers_do_not_depend_on_the_batch(tokenizer, recipe, monkeypatch):
    model = new_base(tokenizer, recipe).eval()
    asked = questions("facts", "test", 3) + questions("sums", "test", 3)
    together = answers(model, tokenizer, asked)
    monkeypatch.setattr("slim_core.demo.measure.BATCH", 1)
    assert answers(model, tokenizer, asked) == together
    assert len(set(together)) > 1


def test_measure_counts_right_answers(tokenizer, recipe, monkeypatch):
    def half(model, tokenizer, asked):
        return [e.answer if i % 2 else "no idea" for i, e in enumerate(asked)]

    monkeypatch.setattr("slim_core.demo.measure.answers", half)
    seen = []
    scores = measure(None, tokenizer, "validation", 20, ("facts", "boolq"), seen.append)
    assert {task: score.score for task, score in scores.items()} == {"facts": 0.5, "boolq": 0.5}
    assert seen == ["facts", "boolq"]
    assert mean(scores, ("facts",)) == 0.5


def test_greedy(tokenizer, recipe):
    model = new_base(tokenizer, recipe).eval()
    [asked] = questions("facts", "test", 1)
    ids = torch.tensor(
        [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": asked.prompt}], add_generation_prompt=True, return_dict=False
            )
        ]
    )
    for _ in range(6):
        ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(-1)], 1)
    start = tokenizer.decode(ids[0, -6:], skip_special_tokens=True).strip()
    assert answers(model, tokenizer, [asked])[0].startswith(start)
