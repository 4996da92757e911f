# SPDX-License-Identifier: Apache-2.0
"""Whether the adapters of a run can be used afterwards: checked by shapes alone, before any data are read."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from transformers import PreTrainedConfig

from ..adapters import OPERATOR, AdapterError, absent_names, check_form, describe_base
from ..base.config import build_empty
from ..outside.errors import reason
from .base import add_adapter
from .errors import TrainingError
from .settings import OWN_FLAGS, TrainSettings


# Fields that name modules of the base.
NAMING = ("target_modules", "exclude_modules", "modules_to_save")


def check_usable(
    settings: TrainSettings, methods: Sequence[str], config: PreTrainedConfig, closing: int | None
) -> list[int | None]:
    """Check the adapters that a run will write in the same way as before they are used for answers.

    Args:
        settings: the run.
        methods: methods still to be trained.
        config: of the base model.
        closing: the token that closes an answer; None if there is none.

    Returns:
        The bytes that the adapter of each method will take; None if shapes alone do not determine them.

    Raises:
        TrainingError: if an adapter cannot be made, or could be neither checked, compared nor served once it is.
    """
    return [_adapter_bytes(method, settings, config, closing) for method in methods]


def _adapter_bytes(method: str, settings: TrainSettings, config: PreTrainedConfig, closing: int | None) -> int | None:
    try:
        base = build_empty(config)
        shapes = describe_base(base, settings.base)
        with torch.device("meta"):
            model = add_adapter(base, method, settings, closing=closing)
        tensors = get_peft_model_state_dict(model, save_embedding_layers=False)
    except TrainingError:
        raise
    except Exception:  # loading the base will report it better
        return None
    # PEFT would leave out what it does not find, and train the rest.
    for field, names, why in absent_names(model.peft_config[model.active_adapter], shapes, NAMING):
        flag = OWN_FLAGS.get(field, f"--slim {field}")
        raise TrainingError(f"{flag} names {names}, but {why}.")
    try:
        check_form(_written(model), {name: tuple(tensor.shape) for name, tensor in tensors.items()}, shapes, OPERATOR)
    except AdapterError as error:
        raise TrainingError(
            f"With these settings the {method} adapter could be trained, but not checked, compared or served "
            f"afterwards: {error}"
        ) from None
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _written(model: PeftModel) -> bytes:
    """The config's file as PEFT writes it."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            model.peft_config[model.active_adapter].save_pretrained(folder)
            return (Path(folder) / "adapter_config.json").read_bytes()
    except OSError as error:
        raise TrainingError(
            f"Temporary files cannot be written on this machine: {reason(error)}; set TMPDIR to a writable folder."
        ) from None
