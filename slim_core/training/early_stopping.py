# SPDX-License-Identifier: Apache-2.0
"""Keeping the adapter with the lowest validation loss."""

from __future__ import annotations

import logging
import math
from typing import Any

from peft import PeftModel
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments


# It warns that the best adapter is not loaded at the end; `KeepBest` does that without another checkpoint.
logging.getLogger("transformers.trainer_callback").addFilter(
    lambda record: "EarlyStoppingCallback without load_best_model_at_end" not in str(record.msg)
)


class KeepBest(TrainerCallback):
    """Keeps a CPU copy of the trained tensors from the lowest validation loss of this run.

    The best adapter of an interrupted run is not in its checkpoints: a resumed run starts looking from scratch.

    Args:
        trainer: of the adapter.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._loss, self._step = math.inf, 0
        self._kept: dict[str, Tensor] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        state.best_metric = None

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        loss = kwargs["metrics"]["eval_loss"]
        if loss < self._loss:
            self._loss, self._step = loss, state.global_step
            self._kept = {name: tensor.detach().cpu().clone() for name, tensor in self._tensors().items()}

    def _tensors(self) -> dict[str, Tensor]:
        """Trained tensors and training statistics of adapters."""
        model = self._trainer.accelerator.unwrap_model(self._trainer.model)
        assert isinstance(model, PeftModel)
        names = tuple(f".{name}" for name in model.active_adapters)
        state = model.state_dict(keep_vars=True)
        return {
            name: tensor
            for name, tensor in state.items()
            if tensor.requires_grad or any(name.endswith(adapter) or f"{adapter}." in name for adapter in names)
        }

    def restored(self) -> str:
        """Restore the best adapter and return a sentence about it."""
        if not self._kept:
            return "There was no validation, so the adapter is that of the last step."
        # Not tensor by tensor: SLIM's layers must be notified that their clusters have changed.
        self._trainer.accelerator.unwrap_model(self._trainer.model).load_state_dict(self._kept, strict=False)
        return f"The adapter is that of step {self._step}, whose validation loss of {self._loss:.4f} was the lowest."
