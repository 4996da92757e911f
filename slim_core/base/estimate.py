# SPDX-License-Identifier: Apache-2.0
"""How much memory a base model needs, from its config alone: nothing is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from operator import mul
from typing import Literal

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicCache
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import get_keys_to_not_convert
from transformers.quantizers.quantizers_utils import should_convert_module

from ..outside.errors import first_line
from .config import build_empty
from .errors import EngineError


Bits = Literal[4, 8] | None
# Memory reserved for answers: base, LoRA and SLIM, each with this many tokens of prompt and answer.
ROWS, TOKENS = 3, 2048
# NF4 with double quantisation: half a byte, a byte for 64 of them, and a float32 for 256 of those.
BYTES_OF_4_BITS = 1 / 2 + 1 / 64 + 4 / (64 * 256)
# Fragmentation, and the library's own reserve.
MARGIN = 1.05


@dataclass(frozen=True)
class MemoryNeed:
    """Memory that a base model needs.

    Attributes:
        parameters: how many numbers it has.
        weights: bytes of them, as they are loaded.
        answers: bytes for three answers of `tokens` tokens: keys and values, hidden states, logits.
        tokens: prompt and answer together.
        dtype: in words: "bfloat16", "4-bit nf4", "8-bit".
    """

    parameters: int
    weights: int
    answers: int
    tokens: int
    dtype: str

    @property
    def total(self) -> int:
        """Bytes that must be free."""
        return int((self.weights + self.answers) * MARGIN)


def estimate(model: PreTrainedModel, dtype: torch.dtype, bits: Bits = None) -> MemoryNeed:
    """Estimate the memory that a causal language model needs.

    Args:
        model: without weights, as `empty_model` makes it.
        dtype: of what is not quantised.
        bits: 4 or 8 for its Linears; None for none.
    """
    sizes = list(_sizes(model, bits))
    text = model.config.get_text_config()
    tokens = min(TOKENS, getattr(text, "max_position_embeddings", None) or TOKENS)
    names: dict[Bits, str] = {4: "4-bit nf4", 8: "8-bit"}
    name = names.get(bits, str(dtype).removeprefix("torch."))
    answers = ROWS * (_cache_bytes(text, tokens, dtype) + _work_bytes(text, tokens, dtype))
    return MemoryNeed(model.num_parameters(), int(sum(sizes)), answers, tokens, name)


def empty_model(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """The model on the meta device, where weights have shapes but take no memory.

    Raises:
        EngineError: if it cannot be built, or is not a causal language model that transformers supports.
    """
    try:
        return build_empty(config, dtype)
    except Exception as error:  # transformers raises many kinds of errors for bad configs
        raise EngineError(f"No causal language model can be built from this config: {first_line(error)}.") from None


def quantised_weights(model: PreTrainedModel) -> set[int]:
    """The `id` of each weight that transformers hands to bitsandbytes: of plain Linears, except the output head.

    Experts of mixture models are not Linears and are not quantised.
    """
    unquantised = get_keys_to_not_convert(model)
    return {
        id(module.weight)
        for name, module in model.named_modules()
        if (type(module) is nn.Linear or isinstance(module, Conv1D)) and should_convert_module(name, unquantised)
    }


def _sizes(model: PreTrainedModel, bits: Bits) -> Iterator[float]:
    """Bytes of each tensor; shared tensors count once."""
    quantised = quantised_weights(model) if bits is not None else set()
    for tensor in [*model.parameters(), *model.buffers()]:
        if id(tensor) not in quantised:
            yield tensor.numel() * tensor.element_size()
        elif bits == 4:
            yield tensor.numel() * BYTES_OF_4_BITS
        else:
            # A float32 scale for each output.
            yield tensor.numel() + 4 * max(tensor.shape)


def _cache_bytes(text: PreTrainedConfig, tokens: int, dtype: torch.dtype) -> int:
    """Bytes of keys and values for one answer; a sliding window stores only its own length."""
    layers = DynamicCache(config=text).layers
    lengths = [min(tokens, getattr(layer, "sliding_window", None) or tokens) for layer in layers]
    lengths = lengths or [tokens] * text.num_hidden_layers
    # Layers that share another layer's keys and values have no cache entry; they come last.
    widths = [_cache_width(layer) for layer in text.per_layer_config[: len(lengths)]]
    return 2 * sum(map(mul, lengths, widths)) * dtype.itemsize


def _cache_width(layer: PreTrainedConfig) -> int:
    """Number of values in one token's keys in one layer."""
    heads = getattr(layer, "num_key_value_heads", None) or layer.num_attention_heads
    return heads * (getattr(layer, "head_dim", None) or layer.hidden_size // layer.num_attention_heads)


def _work_bytes(text: PreTrainedConfig, tokens: int, dtype: torch.dtype) -> int:
    """Working memory for one answer while its prompt is read: the widest tensors of a block, and float32 logits with
    copies.
    """
    wide = max(_inner_width(layer) for layer in text.per_layer_config[:])
    return tokens * (3 * wide + 6 * text.hidden_size) * dtype.itemsize + 4 * text.vocab_size * 4


def _inner_width(layer: PreTrainedConfig) -> int:
    """Of the MLP."""
    width = getattr(layer, "intermediate_size", None) or getattr(layer, "ffn_dim", None) or 4 * layer.hidden_size
    # Some families write one number for each layer.
    return max(width) if isinstance(width, (list, tuple)) else width
