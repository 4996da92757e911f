# SPDX-License-Identifier: Apache-2.0
"""The base model and its tokenizer, and an adapter around it. Safetensors only; no code of a model is run."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..method import guard_cpu_4bit
from .errors import TrainingError, first_line
from .settings import TrainSettings


def load_tokenizer(settings: TrainSettings) -> tuple[PreTrainedTokenizerBase, PreTrainedConfig]:
    """The tokenizer and the configuration of the base model, which are enough to check the data.

    Raises:
        TrainingError: if there is no base model of that name.
    """
    if (Path(settings.base) / "adapter_config.json").is_file():
        raise TrainingError(f"{settings.base} is an adapter; --base must name the model that it belongs to.")
    common = {"revision": settings.base_revision, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(settings.base, **common)
    except Exception as error:  # hub, file and format errors of many kinds
        raise TrainingError(
            f"The base model {settings.base} cannot be loaded: {first_line(error)}; --base takes a folder or a Hub id "
            "such as Qwen/Qwen3-0.6B."
        ) from None
    try:
        return AutoTokenizer.from_pretrained(settings.base, **common), config
    except Exception as error:
        raise TrainingError(
            f"The tokenizer of {settings.base} cannot be loaded: {first_line(error)}; put its tokenizer.json and "
            "tokenizer_config.json beside the model."
        ) from None


def load_base(settings: TrainSettings) -> PreTrainedModel:
    """The base model, frozen where it is quantised, in bfloat16 on GPUs that have it, else in float32.

    Raises:
        TrainingError: if it is no causal language model, has no safetensors, or cannot be quantised.
    """
    quantised = {}
    if settings.four_bit:
        quantised = {
            "quantization_config": BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=base_dtype(settings),
            ),
            # Each process has the whole model on its own device.
            "device_map": {"": int(os.environ.get("LOCAL_RANK", "0")) if torch.cuda.is_available() else "cpu"},
        }
    try:
        model = AutoModelForCausalLM.from_pretrained(
            settings.base,
            revision=settings.base_revision,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=base_dtype(settings),
            **quantised,
        )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise TrainingError(
            f"The base model {settings.base} cannot be loaded: {first_line(error)}; --base must be a causal language "
            "model with safetensors files."
        ) from None
    if settings.four_bit:
        # Checkpointing is the Trainer's.
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        # SLIM guards itself; here LoRA and DoRA get the same base.
        guard_cpu_4bit(model)
    return model


def base_dtype(settings: TrainSettings) -> torch.dtype:
    """The base is in bfloat16 on GPUs that have it, unless the settings say no. Elsewhere it is in float32."""
    has_it = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return torch.bfloat16 if has_it and settings.bf16 is not False else torch.float32


def adapter_config(method: str, settings: TrainSettings) -> PeftConfig:
    """The configuration of one method. LoRA and DoRA get SLIM's total rank and its factor alpha / r."""
    slim = settings.slim_config()
    if method == "slim":
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


def add_adapter(base: PreTrainedModel, method: str, settings: TrainSettings) -> PeftModel:
    """The base with a new adapter of the method.

    Raises:
        TrainingError: if the model has no such modules, or some that cannot be adapted.
    """
    try:
        return get_peft_model(base, adapter_config(method, settings))
    except (TypeError, ValueError) as error:
        raise TrainingError(f"The {method} adapter does not fit {settings.base}: {error}") from None
