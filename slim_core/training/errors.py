# SPDX-License-Identifier: Apache-2.0
"""What can go wrong for a reason that the user can change. The message is one sentence for the person who reads it."""

from __future__ import annotations


class TrainingError(Exception):
    """A setting, the base model or the machine does not allow this training run."""


class DataError(TrainingError):
    """The data are wrong. The sentence names the file, the line where there is one, and the remedy."""


def first_line(error: BaseException) -> str:
    """The first line of a library's message, to go into a sentence of ours: no full stop at the end."""
    lines = str(error).strip().splitlines()
    return lines[0].strip().rstrip(".") if lines else type(error).__name__
