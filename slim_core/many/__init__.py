# SPDX-License-Identifier: Apache-2.0
"""Many prompts: read from a list, answered one after another, and written as a table. Plain data, no page."""

from .answers import (
    DriftGroup,
    PastLora,
    PromptAnswer,
    PromptProgress,
    PromptResult,
    Respondent,
    ask_all,
    gate_name,
    mean_drift,
)
from .prompts import KINDS, ListedPrompt, read_lines, read_prompt_file, read_prompts
from .tables import to_csv, to_json


__all__ = [
    "KINDS",
    "Respondent",
    "DriftGroup",
    "PromptProgress",
    "ListedPrompt",
    "PastLora",
    "PromptAnswer",
    "PromptResult",
    "ask_all",
    "gate_name",
    "mean_drift",
    "read_lines",
    "read_prompt_file",
    "read_prompts",
    "to_csv",
    "to_json",
]
