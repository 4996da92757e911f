# SPDX-License-Identifier: Apache-2.0
"""A run's settings as transformers' TrainingArguments."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from transformers import TrainingArguments

from .base import base_dtype
from .checkpoints import CHECKPOINTS
from .settings import TrainSettings


WARMUP = 0.03  # share of the steps


def training_arguments(settings: TrainSettings, folder: Path, examples: int, validate: bool) -> TrainingArguments:
    """TrainingArguments for our settings.

    Args:
        settings: the run.
        folder: of the adapter.
        examples: how many there are for training.
        validate: whether there are any for validation.
    """
    steps = settings.max_steps or math.ceil(settings.epochs * math.ceil(examples / settings.batch_size))
    return TrainingArguments(
        output_dir=str(folder / CHECKPOINTS),
        per_device_train_batch_size=settings.per_device,
        per_device_eval_batch_size=settings.per_device,
        gradient_accumulation_steps=settings.accumulation,
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps or -1,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="linear",
        # Rounded down: a warm-up step has rate 0, which a short run cannot afford.
        warmup_steps=int(WARMUP * steps),
        # Set explicitly, since otherwise transformers does not train over several processes without an accelerator.
        use_cpu=not torch.accelerator.is_available(),
        bf16=base_dtype(settings) == torch.bfloat16 if settings.bf16 is None else settings.bf16,
        activation_checkpointing=settings.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False} if settings.gradient_checkpointing else None,
        seed=settings.seed,
        # The order of the examples must not depend on how many random numbers a method draws.
        data_seed=settings.seed,
        logging_steps=settings.log_every,
        logging_first_step=True,
        # transformers would replace a NaN loss by the mean of the others.
        logging_nan_inf_filter=False,
        eval_strategy=_when_to_validate(settings) if validate else "no",
        eval_steps=settings.validate_every,
        metric_for_best_model=None if settings.early_stopping is None else "eval_loss",
        prediction_loss_only=True,
        save_strategy="steps",
        save_steps=settings.save_every,
        report_to=settings.report_to or "none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        label_names=["labels"],
    )


def _when_to_validate(settings: TrainSettings) -> str:
    return "epoch" if settings.validate_every is None else "steps"
