# SPDX-License-Identifier: Apache-2.0
"""What is in the text of a question."""

from __future__ import annotations

import re


OPTION = re.compile(r"(?:^| )(?:([A-D])\.|Answer(\d):) ")


def options(prompt: str) -> list[str]:
    """The options of a multiple-choice question."""
    parts = OPTION.split(prompt.removesuffix(".").split(" Answer format:")[0])
    return parts[3::3]
