# SPDX-License-Identifier: Apache-2.0
"""Tasks as data: task files of lm-evaluation-harness, the sets of the paper, files of one's own."""

from .build import Asking, Form
from .catalogue import GENERAL, PAPER, TRAINED_FORM, load_tasks
from .task import Item, Kind, Prompt, Question, Request, Scoring, Task, Text, asked


__all__ = [
    "GENERAL",
    "PAPER",
    "TRAINED_FORM",
    "Asking",
    "Form",
    "Item",
    "Kind",
    "Prompt",
    "Question",
    "Request",
    "Scoring",
    "Task",
    "Text",
    "asked",
    "load_tasks",
]
