# SPDX-License-Identifier: Apache-2.0
"""File names in sentences: unchanged unless they are unreadable."""

from __future__ import annotations

from pathlib import Path

from ..outside.errors import quoted


LONGEST = 200


def named(path: Path | str) -> str:
    """A path for use in a sentence: shortened, and quoted if it has unprintable characters such as line ends."""
    text = str(path)
    return text if text.isprintable() and len(text) <= LONGEST else quoted(text, LONGEST)
