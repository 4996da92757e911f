# SPDX-License-Identifier: Apache-2.0
"""One tiny random model of each family of causal language models that people bring, built from its config."""

from __future__ import annotations

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tests.conftest import SIZES


SMALL = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
FAMILIES = {
    "llama": SIZES,
    "mistral": SIZES,
    "qwen2": SIZES,
    "qwen3": SIZES,
    "gemma2": SIZES,
    "gemma3_text": SIZES | {"sliding_window": 8},
    "phi": SMALL | {"intermediate_size": 48},
    "phi3": SIZES | {"pad_token_id": 0},
    "gpt2": {"vocab_size": 99, "n_embd": 32, "n_layer": 2, "n_head": 4},
    "gpt_neox": SMALL | {"intermediate_size": 48},
    "opt": SMALL | {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "bloom": {"vocab_size": 99, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "falcon": SMALL,
    "mixtral": SIZES | {"num_local_experts": 2},
    "qwen3_moe": SIZES | {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16},
}


def family(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **FAMILIES[name])).eval()
