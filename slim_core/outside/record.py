# SPDX-License-Identifier: Apache-2.0
"""Reads from the training record next to an adapter how its answers end."""

from __future__ import annotations

from pathlib import Path

from .errors import AdapterError
from .limits import Limits
from .strict_json import read_object


RECORD = "training.json"
# A record has the curves of a whole run.
RECORD_BYTES = 8 * 1024 * 1024
MOST_ENDING = 100  # characters


def learned_ending(folder: Path, limits: Limits) -> str | None:
    """The text with which an adapter learned to end its answers, if its base has no token for that.

    Any other file of that name is ignored; it does not make the adapter invalid.

    Args:
        folder: of the adapter.
        limits: of what comes from outside.
    """
    path = folder / RECORD
    try:
        if path.stat().st_size > RECORD_BYTES:
            return None
        ending = read_object(path.read_bytes(), RECORD, limits.json_depth).get("answers_end_with")
    except (OSError, AdapterError):
        return None
    fits = isinstance(ending, str) and ending.strip() == ending and 0 < len(ending) <= MOST_ENDING
    return ending if fits else None
