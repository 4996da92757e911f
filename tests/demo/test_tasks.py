# SPDX-License-Identifier: Apache-2.0
"""The demo's questions as tasks: the same ones, marked as the demo marks them."""

from __future__ import annotations

import pytest

from slim_core.demo.measure import TASKS, questions
from slim_core.demo.tasks import NAMES, demo_tasks, expected
from slim_core.demo.world import check
from slim_core.evaluation.errors import EvaluationError
from slim_core.evaluation.tasks import Asking


def test_the_questions_are_the_demo_s():
    tasks = demo_tasks()
    assert tuple(tasks) == NAMES and len(NAMES) == 8
    for name, task in zip(NAMES, TASKS, strict=True):
        loaded = tasks[name](Asking(limit=5))
        assert [item.prompt[0].content for item in loaded.items] == [e.prompt for e in questions(task, "test", 5)]
        assert loaded.kind == ("downstream" if task in ("obqa", "siqa", "boolq") else "general")
        assert tasks[name](Asking(limit=2, kind="general")).kind == "general"
    with pytest.raises(EvaluationError, match="leave --shots and --no-chat out"):
        tasks["demo_obqa"](Asking(limit=2, shots=1))


@pytest.mark.parametrize("task", TASKS)
def test_an_answer_is_marked_as_the_demo_marks_it(task):
    examples = questions(task, "test", 20)
    for number, example in enumerate(examples):
        other = examples[number - 1].answer
        for text in (
            example.answer,
            f"  {example.answer.upper()} !",
            example.answer.replace(" ", "  ") + ".",
            f"so {example.answer}",
            f"{other} or {example.answer}",
            f"{example.answer} or {other}",
            other,
            "",
            "12 and answer1, true",
        ):
            assert expected(example).mark(text) == float(check(example, text)), (example, text)
