# SPDX-License-Identifier: Apache-2.0
"""The most memory that a training takes."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainingArguments

from ..base.peak_memory import peak_memory, watch_memory
from .report import TrainingRecord


class PeakMemory(TrainerCallback):
    """Writes the most memory during a training into its record.

    Args:
        record: of the training.
    """

    def __init__(self, record: TrainingRecord) -> None:
        self._record, self._watched = record, False

    def on_train_begin(self, args: TrainingArguments, *_: Any, **__: Any) -> None:
        self._watched = watch_memory(args.device)

    def on_train_end(self, args: TrainingArguments, *_: Any, **__: Any) -> None:
        self._record.peak_memory = peak_memory(args.device) if self._watched else None
