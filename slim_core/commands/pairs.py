# SPDX-License-Identifier: Apache-2.0
"""KEY=VALUE options."""

from __future__ import annotations

import json
from typing import Any

import typer


def pairs(texts: list[str], flag: str) -> dict[str, Any]:
    """Parse KEY=VALUE strings; values that are JSON are read as JSON, all others are text.

    Args:
        texts: the strings.
        flag: the option's name, for the error.
    """
    values: dict[str, Any] = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not separator:
            raise typer.BadParameter(f"{flag} takes KEY=VALUE, such as seed=1, not {text!r}.")
        try:
            values[key] = json.loads(value)
        except json.JSONDecodeError:
            values[key] = value
    return values
