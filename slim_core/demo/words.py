# SPDX-License-Identifier: Apache-2.0
"""Readable names of the demo's tasks."""

from __future__ import annotations


TASKS = {
    "sums": "Sums",
    "facts": "Facts",
    "choices": "Multiple choice",
    "yes_no": "Yes or no",
    "talk": "Small talk",
    "obqa": "Things and animals (OpenBookQA form)",
    "siqa": "People and feelings (SocialIQA form)",
    "boolq": "True or false (BoolQ form)",
}


def task_words(name: str) -> str:
    """A task's readable name; other tasks than the demo's get spaces instead of underscores."""
    return TASKS.get(name, name.replace("_", " "))
