# SPDX-License-Identifier: Apache-2.0
"""What can go wrong with an evaluation for a reason that a person can change."""

from __future__ import annotations

from ..base.errors import EngineError


class EvaluationError(EngineError):
    """A task, its data or a setting does not allow this evaluation. The message is one sentence."""
