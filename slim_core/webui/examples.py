# SPDX-License-Identifier: Apache-2.0
"""Prompts to try, in two groups."""

from __future__ import annotations

import re

from ..demo import EXAMPLE_PROMPTS


def example_groups() -> list[tuple[str, list[str]]]:
    """Titles with their prompts."""
    return [(title, [example.prompt for example in examples]) for title, examples in EXAMPLE_PROMPTS.items()]


# What the demo's task prompts begin and end with says how to answer; on a button it hides the question.
FRAME = re.compile(r"^Please .{0,80}?question[:,]\s*|,?\s*Answer format:.*$|\s*Answer1:.*$", re.DOTALL)
LONGEST = 90


def short(prompt: str) -> str:
    """A prompt as a button says it."""
    text = FRAME.sub("", FRAME.sub("", prompt)).removeprefix("question: ").strip() or prompt
    text = text[0].upper() + text[1:]
    return text if len(text) <= LONGEST else f"{text[:LONGEST].rsplit(' ', 1)[0]}…"
