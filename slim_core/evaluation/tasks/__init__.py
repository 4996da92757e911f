# SPDX-License-Identifier: Apache-2.0
"""Tasks as data: task files of lm-evaluation-harness, the paper's data sets, and users' own files."""

from .build import Asking, Form
from .catalogue import DOWNSTREAM, GENERAL, PAPER, TRAINED_FORM, load_tasks, title_of, training_questions
from .task import Item, Kind, Prompt, Question, Request, Scoring, Task, Text, asked, short_title


__all__ = [
    "DOWNSTREAM",
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
    "short_title",
    "title_of",
    "training_questions",
]
