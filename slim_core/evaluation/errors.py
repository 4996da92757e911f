# SPDX-License-Identifier: Apache-2.0
"""Errors of an evaluation that users can fix."""

from __future__ import annotations

from ..base.errors import EngineError


class EvaluationError(EngineError):
    """A task, its data or a setting does not allow this evaluation. The message is one sentence."""
