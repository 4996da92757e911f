# SPDX-License-Identifier: Apache-2.0
"""The base model and its tokenizer from a folder or the Hub. Safetensors only; no code of a model is run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
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
from .engine import Engine
from .errors import EngineError, first_line, is_out_of_memory, out_of_memory_sentence


def compute_dtype() -> torch.dtype:
    """bfloat16 on GPUs that have it, else float32."""
    return torch.bfloat16 if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else torch.float32


def best_device() -> torch.device:
    """A GPU where there is one."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def read_tokenizer(base: str, revision: str | None = None) -> tuple[PreTrainedTokenizerBase, PreTrainedConfig]:
    """The tokenizer and the configuration of a base model.

    Raises:
        EngineError: if there is no base model of that name.
    """
    if (Path(base) / "adapter_config.json").is_file():
        raise EngineError(f"{base} is an adapter; --base must name the model that it belongs to.")
    common = {"revision": revision, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(base, **common)
    except Exception as error:  # hub, file and format errors of many kinds
        raise EngineError(
            f"The base model {base} cannot be loaded: {first_line(error)}; --base takes a folder or a Hub id such as "
            "Qwen/Qwen3-0.6B."
        ) from None
    try:
        return AutoTokenizer.from_pretrained(base, **common), config
    except Exception as error:
        raise EngineError(
            f"The tokenizer of {base} cannot be loaded: {first_line(error)}; put its tokenizer.json and "
            "tokenizer_config.json beside the model."
        ) from None


def four_bit_config(dtype: torch.dtype) -> BitsAndBytesConfig:
    """NF4 with double quantisation, as QLoRA has it."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def read_model(
    base: str,
    revision: str | None,
    dtype: torch.dtype,
    quantisation: BitsAndBytesConfig | None = None,
    device: torch.device | None = None,
) -> PreTrainedModel:
    """A causal language model, in evaluation mode.

    Args:
        base: folder or Hub id.
        revision: version on the Hub.
        dtype: of the weights that are not quantised.
        quantisation: of the others.
        device: where a quantised model goes; it cannot be moved later. Others are on the CPU.

    Raises:
        EngineError: if it is no causal language model, has no safetensors, or cannot be quantised.
        torch.OutOfMemoryError: if a quantised one does not fit.
    """
    more: dict[str, Any] = {}
    if quantisation is not None:
        more = {"quantization_config": quantisation, "device_map": {"": device or "cpu"}}
    try:
        model = AutoModelForCausalLM.from_pretrained(
            base, revision=revision, trust_remote_code=False, use_safetensors=True, dtype=dtype, **more
        )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise EngineError(
            f"The base model {base} cannot be loaded: {first_line(error)}; --base must be a causal language model "
            "with safetensors files."
        ) from None
    guard_cpu_4bit(model)
    return model


def load_engine(
    base: str | Path,
    *,
    lora: str | Path | None = None,
    slim: str | Path | None = None,
    name: str | None = None,
    revision: str | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    four_bit: bool = False,
    eight_bit: bool = False,
) -> Engine:
    """Load a base model once and attach a LoRA and a SLIM adapter, each optional.

    Args:
        base: folder or Hub id.
        lora: folder or Hub id of a LoRA, which becomes the variant "lora".
        slim: of a SLIM adapter, which becomes the variant "slim".
        name: what people call the base; None for its folder or Hub id.
        revision: version of the base on the Hub.
        device: None for CUDA or MPS where they are, else the CPU.
        dtype: None for bfloat16 on GPUs that have it, else float32.
        four_bit: keep the base's Linears in 4 bits (NF4).
        eight_bit: in 8 bits.

    Raises:
        EngineError: if something cannot be loaded or does not fit.
    """
    if four_bit and eight_bit:
        raise EngineError("The base is kept in 4 or in 8 bits, not in both: choose one.")
    base = str(base)
    device = best_device() if device is None else torch.device(device)
    if dtype is None:
        dtype = compute_dtype() if device.type == "cuda" else torch.float32
    tokenizer, _ = read_tokenizer(base, revision)
    quantisation = four_bit_config(dtype) if four_bit else BitsAndBytesConfig(load_in_8bit=True) if eight_bit else None
    try:
        model = read_model(base, revision, dtype, quantisation, device)
        if quantisation is None:
            model.to(device)
    except EngineError:
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise EngineError(out_of_memory_sentence(device, 1)) from None
    engine = Engine(model, tokenizer, name or base)
    for folder, kind in ((lora, "lora"), (slim, "slim")):
        if folder is not None:
            engine.attach(folder, name=kind, kind=kind)
    return engine
