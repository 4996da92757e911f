# SPDX-License-Identifier: Apache-2.0
"""What can go wrong for a reason that the user can change. The message is one sentence for the person who reads it."""

from __future__ import annotations


class TrainingError(Exception):
    """The settings, the base model or the machine do not allow this training run."""


class DataError(TrainingError):
    """The data are wrong. The message names the file, the line if there is one, and the remedy."""
