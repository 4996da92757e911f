# SPDX-License-Identifier: Apache-2.0
"""What can go wrong for a reason that the user can change. The message is one sentence for the person who reads it."""

from __future__ import annotations


class TrainingError(Exception):
    """A setting, the base model or the machine does not allow this training run."""


class DataError(TrainingError):
    """The data are wrong. The sentence names the file, the line where there is one, and the remedy."""
