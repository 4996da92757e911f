# SPDX-License-Identifier: Apache-2.0
"""GGUF files for tests: reading them, and a Llama base, as llama.cpp stores it."""

from __future__ import annotations

import re
from pathlib import Path

import gguf
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast


def read_gguf(path: Path) -> tuple[dict[str, object], dict[str, Tensor]]:
    """Fields and tensors of a file, the tensors in PyTorch's order of dimensions."""
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    return fields, {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in reader.tensors}


def interleaved(weight: Tensor, heads: int) -> Tensor:
    """Rows of one head 0, half, 1, half + 1, …, as llama.cpp's rotary embedding of a Llama reads them."""
    rows = len(weight) // heads
    order = [head * rows + part * rows // 2 + i for head in range(heads) for i in range(rows // 2) for part in (0, 1)]
    return weight[order]


def add_tokenizer(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerFast) -> None:
    """A tokenizer of the demo's kind, which knows whole words and otherwise bytes, with its chat template.

    llama.cpp has none that divides text as the demo's does. Llama 3's looks for whole words too, but takes a sign and
    the word after it as one; signs that the user defined are cut out before. ASCII alone is divided alike.
    """
    texts, types = [], []
    for text, number in sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1]):
        plain = text.replace("Ġ", " ")
        if number in tokenizer.all_special_ids:
            kind = gguf.TokenType.CONTROL
        elif re.fullmatch(r" ?[!-/:-@\[-`{-~]", plain):
            kind, text = gguf.TokenType.USER_DEFINED, plain
        else:
            kind = gguf.TokenType.NORMAL
        texts.append(text)
        types.append(kind)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(texts)
    writer.add_token_types(types)
    # It must have one; this one gives no token.
    writer.add_token_merges(["Ġ Ġ"])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_add_bos_token(False)
    writer.add_chat_template(tokenizer.chat_template)


def write_llama(model: PreTrainedModel, path: Path, tokenizer: PreTrainedTokenizerFast | None = None) -> Path:
    """A Llama in float32. Without a tokenizer, prompts are given as token ids."""
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    if tokenizer is None:
        writer.add_tokenizer_model("none")
    else:
        add_tokenizer(writer, tokenizer)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for key, weight in model.state_dict().items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if "q_proj" in key or "k_proj" in key:
            weight = interleaved(weight, config.num_attention_heads if "q_proj" in key else config.num_key_value_heads)
        writer.add_tensor(names.get_name(key, (".weight",)), weight.float().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
