# SPDX-License-Identifier: Apache-2.0
"""The questions, their marks, and that an answer is what the model writes alone."""

from __future__ import annotations

import pytest
import torch

from slim_core.demo.measure import TASKS, asked, measure, questions, reply
from slim_core.demo.pretrain import new_base


@pytest.mark.parametrize("task", TASKS)
def test_questions_are_distinct_and_stay_the_same(task):
    examples = questions(task, "test", 60)
    assert len({e.prompt for e in examples}) == 60
    assert examples == questions(task, "test", 60)
    assert {e.task for e in examples} == {task}


def test_answers_do_not_depend_on_the_batch(tokenizer, recipe, monkeypatch):
    model = new_base(tokenizer, recipe).eval()
    chats = list(map(asked, questions("facts", "test", 3) + questions("sums", "test", 3)))
    together = reply(model, tokenizer, chats)
    monkeypatch.setattr("slim_core.demo.measure.BATCH", 1)
    assert reply(model, tokenizer, chats) == together
    assert len(set(together)) > 1


def test_measure_marks_right_answers(tokenizer, monkeypatch):
    right = {e.prompt: e.answer for task in ("facts", "boolq") for e in questions(task, "validation", 20)}

    def half(model, tokenizer, chats):
        return [right[chat[0]["content"]] if i % 2 else "no idea" for i, chat in enumerate(chats)]

    monkeypatch.setattr("slim_core.demo.measure.reply", half)
    seen = []
    marks = measure(None, tokenizer, "validation", 20, ("facts", "boolq"), seen.append)
    assert marks == {"facts": "01" * 10, "boolq": "01" * 10}
    assert seen == ["facts", "boolq"]


def test_greedy(tokenizer, recipe):
    model = new_base(tokenizer, recipe).eval()
    [example] = questions("facts", "test", 1)
    chat = asked(example)
    ids = torch.tensor([tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)])
    for _ in range(6):
        ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(-1)], 1)
    start = tokenizer.decode(ids[0, -6:], skip_special_tokens=True).strip()
    assert reply(model, tokenizer, [chat])[0].startswith(start)
