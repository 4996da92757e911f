# SPDX-License-Identifier: Apache-2.0
"""Small adapted models, and what the tests of PEFT's life cycle ask of them."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from importlib.metadata import version

import pytest
import torch
from packaging.version import Version
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    MambaConfig,
    MambaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.integrations.peft import MIN_PEFT_VERSION

from slim_core import SlimConfig
from slim_core.method import SlimLayer
from tests.conftest import build


T5_LINEARS = ["q", "k", "v", "o", "wi", "wo"]
transformers_takes_peft = pytest.mark.skipif(
    Version(version("peft")) < Version(MIN_PEFT_VERSION),
    reason=f"transformers {version('transformers')} refuses PEFT before {MIN_PEFT_VERSION} in `add_adapter`",
)


def tiny_opt() -> OPTForCausalLM:
    """Its MLP sees (batch * tokens, channels)."""
    sizes = {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 48, "num_hidden_layers": 2}
    off = {"dropout": 0.0, "attention_dropout": 0.0}
    return OPTForCausalLM(OPTConfig(vocab_size=99, max_position_embeddings=64, num_attention_heads=4, **sizes, **off))


def tiny_mamba() -> MambaForCausalLM:
    """It remembers a state of one size, and its cache does not know how many tokens that is of."""
    return MambaForCausalLM(MambaConfig(vocab_size=99, hidden_size=32, state_size=4, num_hidden_layers=2))


def tiny_t5() -> T5ForConditionalGeneration:
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4, "dropout_rate": 0.0}
    torch.manual_seed(0)
    return T5ForConditionalGeneration(T5Config(vocab_size=99, decoder_start_token_id=0, pad_token_id=0, **sizes))


def tiny_bart() -> BartForConditionalGeneration:
    """Its Linears have the names of a decoder's, in the attention to the encoder too."""
    layers = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
    sizes = {"d_model": 32, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 64}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    off = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}
    torch.manual_seed(0)
    return BartForConditionalGeneration(BartConfig(vocab_size=99, **layers, **sizes, **special, **off))


def small_base(family: str, seed: int = 0) -> nn.Module:
    """`build`, a model whose MLP reads (batch * tokens, channels), and a recurrent one."""
    if family not in ("opt", "mamba"):
        return build(family, seed)
    torch.manual_seed(seed)
    return (tiny_opt() if family == "opt" else tiny_mamba()).eval()


def slim(**changes) -> SlimConfig:
    """A small mixture that changes the output without any training, from the first token on."""
    small = {"r": 2, "num_experts": 3, "num_identity": 1, "num_clusters": 4, "init_weights": False}
    return SlimConfig(**(small | {"context_warmup": 0} | changes))


@torch.no_grad()
def logits(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    return model.eval()(input_ids=ids).logits


def train(model: nn.Module, ids: torch.Tensor, steps: int = 2) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    model.eval()


def slim_layers(model: nn.Module) -> dict[str, SlimLayer]:
    """By their name in the base model."""
    return {m.module_name: m for m in model.modules() if isinstance(m, SlimLayer)}


def router_layer(layer: SlimLayer, model: nn.Module, adapter_name: str = "default") -> SlimLayer:
    """The layer that holds the router which this one reads; itself if it reads none."""
    router = layer.routers.get(adapter_name)
    return layer if router is None else slim_layers(model)[router.module_name]


def hooked(model: nn.Module) -> list[str]:
    return [name for name, m in model.named_modules() if m._forward_hooks or m._forward_pre_hooks]


def trained(ids: torch.Tensor, family: str = "llama", base: nn.Module | None = None, **changes) -> PeftModel:
    model = get_peft_model(build(family) if base is None else base, slim(**changes))
    train(model, ids)
    return model


def assert_untouched(base: nn.Module, before: torch.Tensor, ids: torch.Tensor) -> None:
    assert not any(isinstance(m, SlimLayer) for m in base.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in base.modules())
    assert torch.equal(logits(base, ids), before)


def tensors_of(model: nn.Module, adapter_name: str = "default") -> dict[str, torch.Tensor]:
    """Everything the adapter must not lose, found by walking the modules and not by asking PEFT."""
    tensors = {}
    for path, module in model.named_modules():
        if isinstance(module, SlimLayer):
            for container, child in module.named_children():
                if container != "base_layer" and container not in ("slim_column_index", "slim_row_index"):
                    state = {**dict(child.named_parameters()), **dict(child.named_buffers())}
                    if adapter_name in state:
                        tensors[f"{path}.{container}"] = state[adapter_name].detach()
    return tensors


def made_once(make: Callable[..., PeftModel]) -> Callable[..., PeftModel]:
    """The same arguments make a model once. Everyone gets a copy of it, and the random numbers that come after it."""
    kept: dict[str, tuple[PeftModel, torch.Tensor]] = {}

    @functools.wraps(make)
    def copied(*families: str, **changes) -> PeftModel:
        key = repr((families, sorted(changes.items())))
        if key not in kept:
            kept[key] = make(*families, **changes), torch.get_rng_state()
        model, random = kept[key]
        torch.set_rng_state(random)
        return copy.deepcopy(model)

    return copied


def learned(family: str = "llama", base: nn.Module | None = None, **changes) -> PeftModel:
    """A model whose statistics and router are at work, and whose gate is neither open nor closed on random tokens."""
    return _learned(family, **changes) if base is None else _on(base, **changes)


@made_once
def _learned(family: str, **changes) -> PeftModel:
    return _on(small_base(family), **changes)


def _on(base: nn.Module, **changes) -> PeftModel:
    start = {"target_modules": "all-linear", "yield_quantile": 0.6, "yield_strength": 2.0, "num_identity": 2}
    torch.manual_seed(2)
    model = get_peft_model(base, slim(**(start | changes)))
    learn(model)
    return model


@torch.no_grad()
def learn(model: nn.Module, adapter_name: str = "default") -> None:
    """Show an adapter that learns some tokens, without changing its factors."""
    model.train()
    generator = torch.Generator().manual_seed(3)
    for _ in range(3):
        model(input_ids=torch.randint(3, 99, (4, 20), generator=generator))
    for name, parameter in model.named_parameters():
        if "slim_router" in name and name.endswith(f".{adapter_name}"):
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    model.eval()
