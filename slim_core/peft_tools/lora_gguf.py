# SPDX-License-Identifier: Apache-2.0
"""A plain PEFT LoRA as a GGUF file, the form in which llama.cpp and Ollama load adapters."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from peft import LoraConfig
from peft.utils.other import get_pattern_key
from torch import Tensor
from transformers import PreTrainedConfig

from ..extras import lacking
from .lora_import import PLAIN_STARTS, UNUSED


# The types of models whose Linears llama.cpp stores row for row as transformers does, apart from `TURNED`, with
# llama.cpp's name of the architecture. Others join or reorder weights.
ARCHITECTURES = {
    "gemma": "GEMMA",
    "gemma2": "GEMMA2",
    "gemma3_text": "GEMMA3",
    "llama": "LLAMA",
    "mistral": "LLAMA",
    "qwen2": "QWEN2",
    "qwen3": "QWEN3",
}
# Their rotary embedding turns neighbouring numbers of a head in llama.cpp, and halves of it in transformers.
TURNED = {"LLAMA"}
PREFIX, A, B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"


def lora_to_gguf(
    config: LoraConfig, state_dict: Mapping[str, Tensor], base: PreTrainedConfig, path: str | os.PathLike
) -> None:
    """Write a plain PEFT LoRA as the GGUF file that llama.cpp's own `convert_lora_to_gguf` would write, in float32.

    Args:
        config: the LoRA's configuration.
        state_dict: its file, keyed `....lora_A.weight` (r, C_in) and `....lora_B.weight` (C_out, r).
        base: the configuration of the base that it was trained for.
        path: the file; one that exists is replaced.

    Raises:
        ImportError: without the package gguf; the sentence says how to install it.
        ValueError: if the format cannot express the adapter: it is more than low-rank updates of Linears, or the
            names and the order of this type of base's weights in llama.cpp are not known here.
        OSError: if the file cannot be written. Nothing is left of it then.
    """
    if (missing := lacking("gguf", "The GGUF format")) is not None:
        raise ImportError(missing)
    import gguf

    # Everything is checked before the file is begun.
    architecture = _architecture(base)
    pairs = _pairs(config, state_dict)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture], base.num_hidden_layers)
    tensors = []
    for module, a, b in pairs:
        name = names.get_name(module)
        if name is None or (name == "output" and base.tie_word_embeddings):
            raise ValueError(f"llama.cpp has no weight of its own for {module} of a {base.model_type} base.")
        if architecture in TURNED:
            b = _turned(module, b, base)
        # One alpha stands for all Linears, and the scale of each is alpha by its rank. What differs goes into B.
        rank = len(a)
        b = b * (_scaling(config, module, rank) * rank / config.lora_alpha)
        tensors += [(f"{name}.weight.lora_a", a), (f"{name}.weight.lora_b", b)]

    path = Path(path)
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH[architecture]])
    try:
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, config.lora_alpha)
        for name, tensor in tensors:
            writer.add_tensor(name, tensor.contiguous().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    except BaseException:
        with suppress(OSError):
            writer.close()
        with suppress(OSError):
            path.unlink()
        raise


def _architecture(base: PreTrainedConfig) -> str:
    """llama.cpp's name of the base's architecture; raises ValueError if its weights are stored in another order."""
    known = ARCHITECTURES.get(base.model_type)
    if known is None:
        raise ValueError(
            f"How llama.cpp orders the weights of a {base.model_type} base is not known here, only that of "
            f"{', '.join(sorted(ARCHITECTURES))}. Export a PEFT LoRA and convert it with llama.cpp's own script."
        )
    return known


def _pairs(config: LoraConfig, state_dict: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Each adapted Linear with its A (r, C_in) and B (C_out, r) in float32; raises ValueError if there is more."""
    for field, unused in UNUSED.items():
        value = getattr(config, field, unused[0])
        if value not in unused:
            raise ValueError(f"This LoRA sets `{field}` to {value!r}, which an adapter of llama.cpp cannot express.")
    if config.init_lora_weights not in PLAIN_STARTS:
        raise ValueError(
            f"This LoRA was initialised with init_lora_weights={config.init_lora_weights!r}, which changes the base's "
            "weights, so it does not fit the base in GGUF."
        )
    for key, tensor in state_dict.items():
        if not key.endswith((A, B)) or tensor.dim() != 2:
            raise ValueError(
                f"`{key}` is not part of a LoRA on a Linear, and an adapter of llama.cpp holds nothing else."
            )
    for name in sorted(key.removeprefix(PREFIX).removesuffix(A) for key in state_dict if key.endswith(A)):
        a, b = (state_dict[PREFIX + name + factor].detach().cpu().float() for factor in (A, B))
        yield name, a, b


def _scaling(config: LoraConfig, module: str, rank: int) -> float:
    patterns = config.alpha_pattern or {}
    alpha = patterns.get(get_pattern_key(list(patterns), module), config.lora_alpha)
    return alpha / (math.sqrt(rank) if config.use_rslora else rank)


def _turned(module: str, b: Tensor, base: PreTrainedConfig) -> Tensor:
    """B (C_out, r) with the rows of queries and keys in llama.cpp's order: halves of each head interleaved."""
    kind = module.rpartition(".")[2]
    if kind not in ("q_proj", "k_proj"):
        return b
    heads = base.num_attention_heads if kind == "q_proj" else base.num_key_value_heads
    return b.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
