# SPDX-License-Identifier: Apache-2.0
"""Small adapters of every method, and the base that they sit on."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from torch import nn

from slim_core import SlimConfig
from slim_core.baselines import KINDS, METHODS
from slim_core.baselines.layer import ExpertsLayer
from tests.conftest import tiny_llama


BLOCKS = 4
IDS = torch.randint(3, 99, (3, 12), generator=torch.Generator().manual_seed(1))


def small_base(**changes: Any) -> nn.Module:
    """Four blocks, and large weights, so that logits differ much."""
    torch.manual_seed(0)
    return tiny_llama(num_hidden_layers=BLOCKS, **({"initializer_range": 0.1} | changes)).eval()


def linears(base: nn.Module) -> dict[str, tuple[int, int]]:
    """(C_in, C_out) of all Linears but the head."""
    modules = {name: m for name, m in base.named_modules() if isinstance(m, nn.Linear)}
    return {name: (m.in_features, m.out_features) for name, m in modules.items() if name != "lm_head"}


# Methods whose PEFT tuner is in this project.
TUNED_HERE = [method.name for method in KINDS.values() if method.tuner is not None]


def small_options(name: str, blocks: int) -> dict[str, Any]:
    """Options without which a method does not fit a base as small as those of the tests."""
    if name == "mola" and blocks % 4:
        return {"num_experts": [2, 3]}  # its default is a number for each quarter of the blocks
    return {"oft_block_size": 8} if name == "oft" else {}


def configured(name: str, base: nn.Module | None = None, **options: Any) -> PeftConfig:
    """A small configuration of a method, as a training run makes it."""
    base = small_base() if base is None else base
    sizes = {"r": 2, "alpha": 4, "num_experts": 4, "num_clusters": 4, "context_warmup": 0}
    slim = SlimConfig(**sizes, target_modules="all-linear", task_type="CAUSAL_LM")
    method = METHODS[name]
    defaults = small_options(name, base.config.num_hidden_layers)
    return method.configure(slim, defaults | options, linears(base))


def adapted(name: str, base: nn.Module | None = None, **options: Any) -> PeftModel:
    """A base with a new adapter, in evaluation mode."""
    base = small_base() if base is None else base
    torch.manual_seed(3)
    return get_peft_model(base, configured(name, base, **options)).eval()


@torch.no_grad()
def stir(model: nn.Module, adapter_name: str = "default", seed: int = 5) -> None:
    """Give the tensors of an adapter other numbers, as training would."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if f".{adapter_name}" in name:
            noise = torch.randn(parameter.shape, generator=generator)
            # A router of these sizes sends tokens to different experts; a factor of these changes much.
            parameter.add_(noise, alpha=0.5 if "router" in name else 0.2)
    for name, buffer in model.named_buffers():
        if f".{adapter_name}" not in name:
            continue
        if "slim_center" in name:
            buffer.copy_(torch.randn(buffer.shape, generator=generator))
        elif "slim_count" in name:
            buffer.fill_(7)
        elif "slim_reference" in name:
            buffer.fill_(0.5)


def stirred(name: str, base: nn.Module | None = None, **options: Any) -> PeftModel:
    model = adapted(name, base, **options)
    stir(model)
    return model


def layers(model: nn.Module) -> dict[str, ExpertsLayer]:
    """By the name of their place."""
    return {m.place.name: m for m in model.modules() if isinstance(m, ExpertsLayer)}
