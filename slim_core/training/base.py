# SPDX-License-Identifier: Apache-2.0
"""The base model, its tokenizer, and a new adapter on it. Safetensors only; no code of a model is run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..base.devices import compute_dtype
from ..base.loading import four_bit_config, read_model, read_tokenizer
from ..base.shapes import describe_base
from ..baselines import METHODS
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
        TrainingError: if it is not a causal language model, has no safetensors, or cannot be quantised.
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


def adapter_config(
    method: str,
    settings: TrainSettings,
    linears: Mapping[str, tuple[int, int]],
    opening: list[int] | None = None,
    own_tokens: dict[str, list[int]] | None = None,
) -> PeftConfig:
    """The configuration of one method. All get SLIM's total rank where they have one, and its factor alpha / r.

    Args:
        method: which.
        settings: of the run.
        linears: (C_in, C_out) of the base's Linears except its head, by name.
        opening: the token ids that open a user's turn, unless the settings name others.
        own_tokens: by module name, ids of tokens whose rows are trained too.
    """
    slim = settings.slim_config()
    if slim.turn_opening is None and slim.distance_scope == "context":
        slim.turn_opening = opening
    slim.trainable_token_indices = own_tokens
    return METHODS[method].configure(slim, settings.options.get(method, {}), linears)


def add_adapter(
    base: PreTrainedModel,
    method: str,
    settings: TrainSettings,
    opening: list[int] | None = None,
    closing: int | None = None,
) -> PeftModel:
    """The base with a new adapter of the method.

    Args:
        base: the base model.
        method: which.
        settings: of the run.
        opening: as of `adapter_config`.
        closing: the token that closes an answer.

    Raises:
        TrainingError: if the model has no such modules, or some that cannot be adapted.
    """
    if settings.start_from is not None:
        return _trained_before(base, method, settings)
    own_tokens = _own_tokens(base, settings, closing) if settings.train_closing_token else None
    try:
        shapes = describe_base(base, settings.base)
        linears = {name: sizes for name, sizes in shapes.linears.items() if name != shapes.head}
        return get_peft_model(base, adapter_config(method, settings, linears, opening, own_tokens))
    except (TypeError, ValueError) as error:
        raise TrainingError(f"The {method} adapter does not fit {settings.base}: {error}") from None


def _trained_before(base: PreTrainedModel, method: str, settings: TrainSettings) -> PeftModel:
    """The base with an adapter that was trained before; its own configuration counts, not that of the settings."""
    folder = settings.start_from
    assert folder is not None  # as the caller checked
    if not (Path(folder) / SAFETENSORS_WEIGHTS_NAME).is_file():
        raise TrainingError(
            f"--start-from: {folder} has no {SAFETENSORS_WEIGHTS_NAME}; name the folder of an adapter."
        )
    try:
        config = PeftConfig.from_pretrained(folder)
        shapes = describe_base(base, settings.base)
        linears = {name: sizes for name, sizes in shapes.linears.items() if name != shapes.head}
        expected = adapter_config(method, settings, linears)
        if any(getattr(config, name, None) != getattr(expected, name, None) for name in ("peft_type", "use_dora")):
            raise TrainingError(f"--start-from: the adapter in {folder} is not of the method {method}.")
        if base.device.type == "meta":  # only its sizes are wanted
            return get_peft_model(base, config)
        return PeftModel.from_pretrained(base, folder, is_trainable=True, config=config)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TrainingError(f"--start-from: the adapter in {folder} does not fit {settings.base}: {error}") from None


def _own_tokens(base: PreTrainedModel, settings: TrainSettings, closing: int | None) -> dict[str, list[int]]:
    """The closing token in the embedding and in the head, or once where they are one weight."""
    if closing is None:
        raise TrainingError(
            f"--train-closing-token: {settings.base} has no token of its own that closes answers; leave the flag out."
        )
    shapes = describe_base(base, settings.base)
    head = shapes.head
    if head is None or head not in shapes.tables or head in shapes.biased or shapes.embedding is None:
        raise TrainingError(
            f"--train-closing-token: {settings.base} has no plain embedding and bias-free head whose rows could "
            "be trained one by one; leave the flag out."
        )
    if closing >= shapes.tables[head][0]:
        raise TrainingError(
            f"--train-closing-token: answers are closed by token {closing}, but {settings.base} knows "
            f"{shapes.tables[head][0]:,}; use the tokenizer that belongs to it."
        )
    trained = [
        name for name in settings.slim.get("modules_to_save") or () if any(t.endswith(name) for t in shapes.tables)
    ]
    if trained:
        raise TrainingError(
            f"--train-closing-token: `modules_to_save` trains all of {trained[0]} already; leave one of them out."
        )
    return {name: [closing] for name in ([shapes.embedding] if shapes.tied else shapes.tables)}
