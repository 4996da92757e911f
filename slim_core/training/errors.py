# SPDX-License-Identifier: Apache-2.0
"""Errors that users can fix. The message is one sentence for them."""

from __future__ import annotations


class TrainingError(Exception):
    """The settings, the base model or the machine do not allow this training run."""


class DataError(TrainingError):
    """The data are wrong. The message names the file, the line if there is one, and the remedy."""
