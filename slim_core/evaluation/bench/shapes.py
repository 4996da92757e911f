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
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from ...base.prompts import Prompts
from ...baselines import METHODS
from ...inference import Engine
from ...inference.packed_linear import pack_linears
from ...method import SlimConfig, guard_cpu_4bit


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


def random_base(
    shape: str, device: str, dtype: torch.dtype, vocabulary: int = 0, four_bit: bool = False
) -> PreTrainedModel:
    """A Llama with random weights, in evaluation mode and without gradients.

    Args:
        shape: one of `SHAPES`.
        device: where it is made.
        dtype: of its weights.
        vocabulary: of the tokenizer that it is used with; the model has at least as many tokens.
        four_bit: whether all Linears but the head are in 4 bits, as `load_engine(four_bit=True)` reads them.
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
    torch.manual_seed(0)
    for name, module in list(model.named_modules()):
        if four_bit and isinstance(module, nn.Linear) and name != "lm_head":
            # One after another, so that no more than one is in memory in full.
            model.set_submodule(name, _in_four_bits(module, device, dtype, config.initializer_range))
        else:
            module.to_empty(device=device, recurse=False)
    model.eval().tie_weights()
    model.requires_grad_(False)
    model.model.rotary_emb = LlamaRotaryEmbedding(config).to(device)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.fill_(1.0)
        elif parameter.is_floating_point():  # what is in 4 bits has its numbers
            parameter.normal_(std=config.initializer_range)
    guard_cpu_4bit(model)
    return model


def _in_four_bits(linear: nn.Linear, device: str, dtype: torch.dtype, std: float) -> nn.Module:
    """A random Linear of the same shape in NF4, with double quantisation."""
    import bitsandbytes as bnb

    made = bnb.nn.Linear4bit(linear.in_features, linear.out_features, bias=False, compute_dtype=dtype, device="meta")
    weight = torch.empty(linear.weight.shape, dtype=dtype, device=device).normal_(std=std)
    plain = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4", compress_statistics=True, module=made)
    made.weight = plain.to(device)  # type: ignore[misc]  # its annotation is for another class
    return made


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


def method_config(method: str, base: PreTrainedModel, rank: int, experts: int) -> PeftConfig:
    """An adapter of any method, with its defaults and the total rank of `slim_config`, where it has one.

    Args:
        method: of `METHODS`. One that does not choose its own modules adapts all Linears.
        base: what it adapts.
        rank: of each expert.
        experts: number of LoRA experts.
    """
    if method == "lora":
        return lora_config(rank * experts)
    linears = {
        name: (module.in_features, module.out_features)
        for name, module in base.named_modules()
        if isinstance(module, nn.Linear) and module is not base.get_output_embeddings()
    }
    return METHODS[method].configure(slim_config(rank, experts), {}, linears)


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
