# SPDX-License-Identifier: Apache-2.0
"""A plain PEFT LoRA as a row beside SLIM: the case of one LoRA expert, no identity expert and no routing."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..method import SlimConfig, SlimType


# Fields of LoraConfig that make it more than W + s B A, with their values when unused. `use_dora` has its own message.
UNUSED = {
    "use_dora": (False,),
    "lora_bias": (False,),
    "bias": ("none",),
    "use_qalora": (False,),
    "layer_replication": (None, []),
    "target_parameters": (None, []),
    "alora_invocation_tokens": (None, []),
    "megatron_config": (None,),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "velora_config": (None,),
    "monteclora_config": (None,),
    "use_bdlora": (None,),
}
# Initialisations that do not change the base model's weights. The others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA)
# subtract their start from the base, so such a file fits a base that only its owner has.
PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")


def lora_to_slim(config: LoraConfig, state_dict: dict[str, Tensor]) -> tuple[SlimConfig, dict[str, Tensor]]:
    """Express a PEFT LoRA adapter as a SLIM adapter with one expert. It is lossless: the factors are the same.

    Args:
        config: the LoRA's configuration.
        state_dict: its file, keyed `....lora_A.weight` (r, C_in) and `....lora_B.weight` (C_out, r), plus the tensors
            of `modules_to_save` and `trainable_token_indices`.

    Returns:
        The SLIM configuration and the state dict, keyed `....slim_A` and `....slim_B`.

    Raises:
        ValueError: if the adapter is more than a plain LoRA on Linears; the sentence names the field or the tensor.
    """
    if getattr(config, "use_dora", False):
        raise ValueError(
            "This LoRA sets `use_dora`: a DoRA also scales what the base's own weights give, which no expert can do. "
            "Attach it as the engine does, with `open_adapter` and `attach` of `slim_core.adapters`, or train it with "
            "use_dora=False."
        )
    for name, unused in UNUSED.items():
        value = getattr(config, name, unused[0])
        if value not in unused:
            raise ValueError(
                f"This LoRA sets `{name}` to {value!r}, which is more than a plain low-rank update. Only a plain LoRA "
                "can be a row of a SLIM batch."
            )
    if config.init_lora_weights not in PLAIN_STARTS:
        raise ValueError(
            f"This LoRA was initialised with init_lora_weights={config.init_lora_weights!r}, which changes the base "
            "model's weights. Save it with `path_initial_model_for_weight_conversion` to get a plain LoRA."
        )
    converted = {_converted_key(key, tensor, config): tensor for key, tensor in state_dict.items()}
    slim = SlimConfig(
        r=config.r,
        num_experts=1,
        num_identity=0,
        top_k=1,
        alpha=config.lora_alpha,
        use_rslora=config.use_rslora,
        target_modules=config.target_modules,
        exclude_modules=config.exclude_modules,
        modules_to_save=config.modules_to_save,
        trainable_token_indices=getattr(config, "trainable_token_indices", None),
        layers_to_transform=config.layers_to_transform,
        layers_pattern=config.layers_pattern,
        rank_pattern=dict(config.rank_pattern or {}),
        alpha_pattern=dict(config.alpha_pattern or {}),
        merge="none",
        task_type=config.task_type,
        base_model_name_or_path=config.base_model_name_or_path,
        inference_mode=True,
    )
    return slim, converted


def _converted_key(key: str, tensor: Tensor, config: LoraConfig) -> str:
    for lora, slim in ((".lora_A.weight", ".slim_A"), (".lora_B.weight", ".slim_B")):
        if key.endswith(lora):
            if tensor.dim() != 2:
                raise ValueError(
                    f"`{key}` has {tensor.dim()} dimensions: this LoRA adapts a convolution. Only LoRAs on Linears "
                    "can be rows of a SLIM batch."
                )
            return key.removesuffix(lora) + slim
    saved = any(f".{name}." in key for name in config.modules_to_save or ())
    if (saved and "lora_" not in key) or (config.trainable_token_indices and ".token_adapter." in key):
        return key
    raise ValueError(
        f"`{key}` is neither `lora_A.weight` nor `lora_B.weight` of a Linear, nor part of `modules_to_save` or of "
        "`trainable_token_indices`: this adapter changes more than Linears and cannot be a row of a SLIM batch."
    )


def load_lora(model: PreTrainedModel | PeftModel, directory: str | os.PathLike, adapter_name: str) -> PeftModel:
    """Attach a saved PEFT LoRA as a row, beside SLIM adapters or to a bare base model.

    Args:
        model: the base model, or a `PeftModel` with SLIM adapters.
        directory: folder with `adapter_config.json` and `adapter_model.safetensors`.
        adapter_name: its name in `adapter_names`.

    Returns:
        The `PeftModel`; the one that was given, if it was one. Other adapters and the active one stay.

    Raises:
        FileNotFoundError: if one of the two files is missing.
        ValueError: if the adapter is not a plain LoRA, does not fit the base model, or the name is taken.
    """
    directory = Path(directory)
    weights = directory / "adapter_model.safetensors"
    for path in (directory / "adapter_config.json", weights):
        if not path.is_file():
            raise FileNotFoundError(f"A LoRA adapter folder needs `{path.name}`; there is none in {directory}.")
    try:
        config = PeftConfig.from_pretrained(str(directory))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{directory / 'adapter_config.json'} is not an adapter configuration: {error!r}.") from error
    if not isinstance(config, LoraConfig):
        raise ValueError(f"The adapter in {directory} is of the kind {config.peft_type}, not LORA.")
    try:
        state_dict = load_file(weights)
    except SafetensorError as error:
        raise ValueError(f"{weights} cannot be read as safetensors: {error}.") from error
    slim, converted = lora_to_slim(config, _without_base_weights(model, state_dict))
    if not isinstance(model, PeftModel):
        wrapped = PeftModel(model, slim, adapter_name)
        wrong = _fill(wrapped, converted, adapter_name)
        if wrong is not None:
            wrapped.unload()
            raise ValueError(wrong)
        return wrapped
    if model.peft_type != SlimType.SLIM:
        raise ValueError(f"The model carries adapters of the kind {model.peft_type}, not SLIM.")
    model.add_adapter(adapter_name, slim)
    wrong = _fill(model, converted, adapter_name)
    if wrong is not None:
        model.delete_adapter(adapter_name)
        raise ValueError(wrong)
    return model


def _without_base_weights(model: nn.Module, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """PEFT also saves the base's own head when an adapter is on it. A copy equal to this base's head is dropped."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    base_tensors = {name.replace(".base_layer.", "."): tensor for name, tensor in base.state_dict().items()}
    kept = {}
    for key, tensor in state_dict.items():
        base_tensor = base_tensors.get(key.removeprefix("base_model.model.").replace(".base_layer.", "."))
        if base_tensor is None or base_tensor.shape != tensor.shape or not torch.equal(base_tensor.to(tensor), tensor):
            kept[key] = tensor
    return kept


def _file_key(key: str) -> str:
    """The name that a converted tensor has in the LoRA's file."""
    return key.replace(".slim_", ".lora_") + (".weight" if ".slim_" in key else "")


def _fill(model: PeftModel, state_dict: dict[str, Tensor], adapter_name: str) -> str | None:
    """Load the tensors; raises an error if they do not fit."""
    expected = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    for key, tensor in expected.items():
        if key not in state_dict:
            return f"The LoRA does not fit the base model: `{_file_key(key)}` is missing from the adapter file."
        if state_dict[key].shape != tensor.shape:
            return (
                f"The LoRA does not fit the base model: `{_file_key(key)}` has the shape "
                f"{list(state_dict[key].shape)}, not {list(tensor.shape)}."
            )
    for key in state_dict:
        if key not in expected:
            return (
                f"The LoRA does not fit the base model: `{_file_key(key)}` is in the adapter file but does not belong "
                "to the model."
            )
    set_peft_model_state_dict(model, state_dict, adapter_name)
    return None
