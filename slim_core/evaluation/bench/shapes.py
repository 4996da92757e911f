# SPDX-License-Identifier: Apache-2.0
"""Models of given shapes with random weights, and adapters for them: what they say means nothing."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from ...base.prompts import Prompts
from ...inference import Engine
from ...inference.packed_linear import pack_linears
from ...method import SlimConfig


# Hidden size, size of the MLP, blocks, heads, key-value heads, vocabulary, and whether the head is the embedding.
SHAPES = {
    "tiny": (32, 64, 1, 2, 2, 512, True),
    "demo": (192, 512, 4, 6, 6, 2905, True),
    "160M": (768, 3072, 12, 12, 12, 32_000, False),
    "1B": (2048, 8192, 16, 32, 8, 128_256, True),
    "3B": (3072, 8192, 28, 24, 8, 128_256, True),
    "8B": (4096, 14_336, 32, 32, 8, 128_256, False),
}
CONTEXT = 4096


def random_base(shape: str, device: str, dtype: torch.dtype, vocabulary: int = 0) -> PreTrainedModel:
    """A Llama with random weights, in evaluation mode and without gradients.

    Args:
        shape: one of `SHAPES`.
        device: where it is made.
        dtype: of its weights.
        vocabulary: of the tokenizer that it is used with; the model has at least as many tokens.
    """
    hidden, mlp, blocks, heads, key_heads, tokens, tied = SHAPES[shape]
    config = LlamaConfig(
        vocab_size=max(tokens, vocabulary),
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=tied,
    )
    # Made without weights, since each class would draw its own first, which takes minutes where they are many.
    with torch.device("meta"):
        model = LlamaForCausalLM._from_config(config, dtype=dtype)
    model = model.to_empty(device=device).eval()
    model.tie_weights()
    model.requires_grad_(False)
    model.model.rotary_emb = LlamaRotaryEmbedding(config).to(device)
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.normal_(std=config.initializer_range)
        else:
            parameter.fill_(1.0)
    return model


def slim_config(rank: int, experts: int) -> SlimConfig:
    """A SLIM adapter on all Linears whose experts do something, for every text: its gate is always open."""
    return SlimConfig(
        r=rank,
        num_experts=experts,
        target_modules="all-linear",
        init_weights=False,
        # Random text is far from what the clusters have seen, and would close the gate.
        yield_strength=0.0,
        task_type="CAUSAL_LM",
    )


def lora_config(rank: int) -> LoraConfig:
    """A LoRA on all Linears."""
    return LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"
    )


def sharing(base: PreTrainedModel) -> PreTrainedModel:
    """A second model around the same weights, so that an adapter changes the modules of one alone."""
    tensors = [*base.parameters(), *base.buffers()]
    return copy.deepcopy(base, {id(tensor): tensor for tensor in tensors})


def adapted(base: PreTrainedModel, config: PeftConfig) -> PeftModel:
    """A model around the weights of a base, with a new adapter, in evaluation mode. Clusters have begun."""
    model = cast(PeftModel, get_peft_model(sharing(base), copy.deepcopy(config)))
    if isinstance(config, SlimConfig):
        with torch.no_grad():
            model.train()(torch.randint(5, base.config.vocab_size, (2, 32), device=base.device))
    return model.eval()


@contextmanager
def saved(base: PreTrainedModel, configs: dict[str, PeftConfig]) -> Iterator[dict[str, Path]]:
    """Folders of new adapters, by name, for the duration of a `with` block."""
    with tempfile.TemporaryDirectory() as folder:
        for name, config in configs.items():
            adapted(base, config).save_pretrained(str(Path(folder) / name))
        yield {name: Path(folder) / name for name in configs}


def random_engine(
    base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, configs: dict[str, PeftConfig]
) -> Engine:
    """An engine around a random base, with a new adapter for each config, by name."""
    with saved(base, configs) as folders:
        return engine_around(sharing(base), tokenizer, name, folders)


def engine_around(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, folders: Mapping[str, Path]
) -> Engine:
    """An engine that takes over a random base, with the adapters in some folders, by name."""
    pack_linears(model)
    engine = Engine(model, Prompts(tokenizer), f"random Llama, {name}")
    for adapter, folder in folders.items():
        engine.attach(folder, name=adapter)
    # Random weights may choose an end token at any step.
    engine.end_tokens = frozenset()
    return engine
