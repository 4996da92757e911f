# SPDX-License-Identifier: Apache-2.0
"""KEY=VALUE options."""

from __future__ import annotations

import json
from typing import Any

import typer


def pairs(texts: list[str], flag: str) -> dict[str, Any]:
    """KEY=VALUE texts; a value that is JSON is read as such, any other is text.

    Args:
        texts: what was given.
        flag: the option's name, for the sentence.
    """
    found: dict[str, Any] = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not separator:
            raise typer.BadParameter(f"{flag} takes KEY=VALUE, such as seed=1, not {text!r}.")
        try:
            found[key] = json.loads(value)
        except json.JSONDecodeError:
            found[key] = value
    return found
