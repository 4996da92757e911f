# SPDX-License-Identifier: Apache-2.0
"""From data sets to a trained adapter: read, encode, train with transformers' Trainer, save, compare."""

from .errors import DataError, TrainingError
from .run import Outcome, train
from .settings import Columns, TrainSettings


__all__ = ["Columns", "DataError", "Outcome", "TrainSettings", "TrainingError", "train"]
