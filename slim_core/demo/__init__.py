# SPDX-License-Identifier: Apache-2.0
"""A small synthetic world in plain English, for training a tiny language model that people can talk to.

The base learns general abilities: word problems, facts, multiple choice, small talk. Adapters are then trained on
downstream tasks, and whatever the base could do before shows how much they made it forget.
"""

from .downstream import DOWNSTREAM_TASKS, downstream_examples
from .example import Example
from .world import EXAMPLE_PROMPTS, GENERAL_TASKS, check, general_examples, world_text


__all__ = [
    "DOWNSTREAM_TASKS",
    "EXAMPLE_PROMPTS",
    "GENERAL_TASKS",
    "Example",
    "check",
    "downstream_examples",
    "general_examples",
    "world_text",
]
