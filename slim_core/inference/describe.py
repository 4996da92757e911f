# SPDX-License-Identifier: Apache-2.0
"""Describing a loaded base."""

from __future__ import annotations

from collections import Counter

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..adapters import part_tensors
from ..base.prompts import Prompts
from .types import ModelInfo


def describe(model: PreTrainedModel, prompts: Prompts, name: str) -> ModelInfo:
    """Information about a base without adapters.

    Args:
        model: the base.
        prompts: of its tokenizer.
        name: what people call it.
    """
    parameters, size = _size(model)
    return ModelInfo(
        name=name,
        parameters=parameters,
        bytes=size,
        dtype=_dtype(model),
        device=", ".join(map(str, _devices(model))),
        context_length=_context_length(model, prompts.tokenizer),
        blocks=model.config.get_text_config().num_hidden_layers,
        chat_template=prompts.has_template,
    )


def end_tokens(model: PreTrainedModel, prompts: Prompts) -> frozenset[int]:
    """Every token that ends an answer: what the model's files say, and what the chat template closes one with."""
    end_ids = {prompts.tokenizer.eos_token_id, prompts.closing_token}
    for config in (model.generation_config, model.config.get_text_config()):
        ids = getattr(config, "eos_token_id", None)
        end_ids.update(i for i in (ids if isinstance(ids, (list, tuple)) else [ids]) if isinstance(i, int))
    return frozenset(end_ids - {None})


def _context_length(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Maximum number of tokens in prompt and answer together. A tokenizer without a limit reports an absurdly large
    one.
    """
    config = model.config.get_text_config()
    names = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
    lengths = [getattr(config, name, None) for name in names]
    return next((length for length in lengths if isinstance(length, int) and length > 0), tokenizer.model_max_length)


def _devices(model: PreTrainedModel) -> list[torch.device]:
    """The device, or several where the model is spread over them."""
    return sorted({parameter.device for parameter in model.parameters()}, key=str)


def _dtype(model: PreTrainedModel) -> str:
    quantisation = getattr(model.config, "quantization_config", None)
    if quantisation is not None and getattr(quantisation, "load_in_4bit", False):
        return f"4-bit {quantisation.bnb_4bit_quant_type}"
    if getattr(quantisation, "load_in_8bit", False):
        return "8-bit"
    return str(model.dtype).removeprefix("torch.")


def _size(model: PreTrainedModel) -> tuple[int, int]:
    """Numbers and bytes of a base model that carries no adapter yet; of 4-bit weights the unpacked numbers."""
    return model.num_parameters(), model.get_memory_footprint()


def bytes_by_device(model: nn.Module) -> dict[torch.device, int]:
    """Bytes of a model on each device, including its adapters; shared tensors count once."""
    sizes: Counter[torch.device] = Counter()
    for tensor in (*model.parameters(), *model.buffers(), *part_tensors(model)):
        sizes[tensor.device] += tensor.numel() * tensor.element_size()
    return dict(sizes)
