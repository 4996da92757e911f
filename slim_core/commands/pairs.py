# SPDX-License-Identifier: Apache-2.0
"""KEY=VALUE options."""

from __future__ import annotations

import json
from typing import Any

import typer


def pairs(texts: list[str]) -> dict[str, Any]:
    """KEY=VALUE texts; a value that is JSON is read as such, any other is text."""
    pairs: dict[str, Any] = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not separator:
            raise typer.BadParameter(f"--slim takes KEY=VALUE, such as yield_mode=calibrated, not {text!r}.")
        try:
            pairs[key] = json.loads(value)
        except json.JSONDecodeError:
            pairs[key] = value
    return pairs
