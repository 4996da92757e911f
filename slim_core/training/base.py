# SPDX-License-Identifier: Apache-2.0
"""The base model and its tokenizer, and an adapter around it. Safetensors only; no code of a model is run."""

from __future__ import annotations

import os

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..base.devices import compute_dtype
from ..base.loading import four_bit_config, read_model, read_tokenizer
from ..inference import EngineError
from .errors import TrainingError
from .settings import TrainSettings


def load_tokenizer(settings: TrainSettings) -> tuple[PreTrainedTokenizerBase, PreTrainedConfig]:
    """The tokenizer and the configuration of the base model, which are enough to check the data.

    Raises:
        TrainingError: if there is no base model of that name.
    """
    try:
        return read_tokenizer(settings.base, settings.base_revision)
    except EngineError as error:
        raise TrainingError(str(error)) from None


def load_base(settings: TrainSettings) -> PreTrainedModel:
    """The base model, frozen where it is quantised, in bfloat16 on GPUs that have it, else in float32.

    Raises:
        TrainingError: if it is no causal language model, has no safetensors, or cannot be quantised.
    """
    dtype = base_dtype(settings)
    # Each process has the whole model on its own device.
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if torch.cuda.is_available() else None
    quantisation = four_bit_config(dtype) if settings.four_bit else None
    try:
        model = read_model(settings.base, settings.base_revision, dtype, quantisation, device)
    except EngineError as error:
        raise TrainingError(str(error)) from None
    if settings.four_bit:
        # Checkpointing is the Trainer's.
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    return model


def base_dtype(settings: TrainSettings) -> torch.dtype:
    """The base is in bfloat16 on GPUs that have it, unless the settings say no. Elsewhere it is in float32."""
    return torch.float32 if settings.bf16 is False else compute_dtype()


def adapter_config(method: str, settings: TrainSettings, opening: list[int] | None = None) -> PeftConfig:
    """The configuration of one method. LoRA and DoRA get SLIM's total rank and its factor alpha / r.

    Args:
        method: which.
        settings: of the run.
        opening: the token ids that open a user's turn, unless the settings name others.
    """
    slim = settings.slim_config()
    if method == "slim":
        if slim.turn_opening is None and slim.distance_scope == "context":
            slim.turn_opening = opening
        return slim
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=slim.num_experts * slim.r,
        lora_alpha=slim.num_experts * slim.alpha,
        lora_dropout=slim.dropout,
        target_modules=slim.target_modules,
        exclude_modules=slim.exclude_modules,
        modules_to_save=slim.modules_to_save,
        layers_to_transform=slim.layers_to_transform,
        layers_pattern=slim.layers_pattern,
        use_dora=method == "dora",
    )


def add_adapter(
    base: PreTrainedModel, method: str, settings: TrainSettings, opening: list[int] | None = None
) -> PeftModel:
    """The base with a new adapter of the method. Arguments as of `adapter_config`.

    Raises:
        TrainingError: if the model has no such modules, or some that cannot be adapted.
    """
    try:
        return get_peft_model(base, adapter_config(method, settings, opening))
    except (TypeError, ValueError) as error:
        raise TrainingError(f"The {method} adapter does not fit {settings.base}: {error}") from None
