# SPDX-License-Identifier: Apache-2.0
"""What the record of a training run, which lies beside an adapter, says of how its answers end."""

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
    """The text with which an adapter learned to end its answers, since its base has no token that can.

    Whatever else lies there under the record's name is no fault of the adapter, and says nothing.

    Args:
        folder: of the adapter.
        limits: of what comes from outside.
    """
    path = folder / RECORD
    try:
        if path.stat().st_size > RECORD_BYTES:
            return None
        found = read_object(path.read_bytes(), RECORD, limits.json_depth).get("answers_end_with")
    except (OSError, AdapterError):
        return None
    fits = isinstance(found, str) and found.strip() == found and 0 < len(found) <= MOST_ENDING
    return found if fits else None
