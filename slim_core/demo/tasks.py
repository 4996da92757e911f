# SPDX-License-Identifier: Apache-2.0
"""The demo's questions as tasks of an evaluation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ..base.messages import Message
from ..evaluation.errors import EvaluationError
from ..evaluation.marking import Expected, Filter
from ..evaluation.tasks import Asking, Request, Task
from .downstream import DOWNSTREAM_TASKS
from .example import Example
from .measure import LONGEST_ANSWER, TASKS, questions
from .words import task_words


NAMES = tuple(f"demo_{task}" for task in TASKS)
QUESTIONS = 600  # of each task, where nobody says how many
OPTION = Filter("regex", r"answer\d|true|false")
NUMBER = Filter("regex", r"\b\d+\b", group=-1)


def demo_tasks() -> dict[str, Callable[[Asking], Task]]:
    """The tasks by name."""
    return {name: partial(_task, task) for name, task in zip(NAMES, TASKS, strict=True)}


def _task(task: str, asking: Asking) -> Task:
    if asking.form not in ("standard", "written"):
        raise EvaluationError(f"demo_{task} is scored by written answers; leave --scoring out.")
    if asking.shots or asking.chat is False:
        raise EvaluationError(f"demo_{task} is asked as the demo was trained; leave --shots and --no-chat out.")
    examples = questions(task, "test", QUESTIONS if asking.limit is None else asking.limit)
    return Task(
        f"demo_{task}",
        task_words(task),
        asking.kind or ("downstream" if task in DOWNSTREAM_TASKS else "general"),
        "written",
        tuple(Request((Message("user", example.prompt),), expected(example)) for example in examples),
        max_new_tokens=LONGEST_ANSWER,
        source="the demo's world, test",
    )


def expected(example: Example) -> Expected:
    """What counts as a right answer, like in `world.check`."""
    if example.task in DOWNSTREAM_TASKS:
        return Expected((OPTION.apply(example.answer),), (OPTION,))
    if example.task == "sums":
        return Expected((NUMBER.apply(example.answer),), (NUMBER,))
    return Expected((example.answer,), ignore=(r"^\s+", r"\s+$", r"[.!]+$", r"(?<=\s)\s+"), ignore_case=True)
