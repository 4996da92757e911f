# SPDX-License-Identifier: Apache-2.0
"""Speed of one adapted Linear: base, PEFT LoRA of equal total rank, SLIM, and a loop over experts, side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftConfig, get_peft_model
from torch import Tensor, nn

from ...method import Linear, SlimConfig
from ...peft_tools import slice_factors, trace_routing
from .machine import dtype_of
from .turns import Measured, repeated, summary, take_turns


BASE, LORA = "base", "peft lora"


@dataclass
class Setting:
    """One case: `tokens` rows through a `width` x `width` Linear, with or without the backward pass."""

    device: str
    dtype: torch.dtype
    width: int
    tokens: int
    backward: bool


class LoopedLinear(Linear):
    """SLIM with a loop over experts, each on the tokens routed to it, as most implementations do it."""

    def _add_stacked(self, name: str, config: SlimConfig, x: Tensor, weights: Tensor | None, result: Tensor) -> Tensor:
        assert weights is not None  # every config that is timed routes
        columns, rows = self._fast_masks(name, config, x)
        x = x if columns is None else x * columns
        a, b = self.slim_A[name].chunk(config.num_experts), self.slim_B[name].chunk(config.num_experts, dim=1)
        for expert in range(config.num_experts):
            index = torch.where(weights[:, expert] > 0)[0]
            delta = F.linear(F.linear(x[index], a[expert]), b[expert]) * self.scaling[name]
            delta = delta * weights[index, expert].unsqueeze(-1).to(delta.dtype)
            delta = delta if rows is None else delta * rows
            result = result.index_add(0, index, delta.to(result.dtype))
        return result


class _Holder(nn.Module):
    """A model with one Linear, for PEFT to adapt."""

    def __init__(self, width: int, device: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width, bias=False, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


def variants_of(setting: Setting, config: SlimConfig) -> dict[str, Callable[[Tensor], Tensor]]:
    """The variants to time, by name. The SLIM variants have the same adapter."""

    def model(peft_config: PeftConfig | None) -> nn.Module:
        torch.manual_seed(0)
        holder = _Holder(setting.width, setting.device, setting.dtype)
        return holder.requires_grad_(False) if peft_config is None else get_peft_model(holder, peft_config)

    def slim(looped: bool = False, **changes: Any) -> nn.Module:
        # The gate is open or closed for all tokens; otherwise the values do not affect the work.
        changes = {"yield_strength": 0.0, "context_warmup": 0} | changes
        adapted = model(replace(config, target_modules=["linear"], init_weights=False, **changes))
        layer = adapted.get_submodule("base_model.model.linear")
        assert isinstance(layer, Linear)
        if looped:
            layer.__class__ = LoopedLinear
        # As after training, every token keeps K LoRA experts, so that no variant does less work.
        layer.slim_router_bias["default"].data[config.num_experts :] -= 1e4
        # One training forward starts the clusters. Their values do not affect the work.
        adapted.train()(torch.randn(1, 256, setting.width, device=setting.device, dtype=setting.dtype))
        return adapted.train(setting.backward)

    rank = config.num_experts * config.r
    lora = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["linear"], init_lora_weights=False)
    traced = slim()

    def run_traced(x: Tensor) -> Tensor:
        with trace_routing(traced):
            return traced(x)

    variants: dict[str, Callable[[Tensor], Tensor]] = {
        BASE: model(None),
        LORA: model(lora).train(setting.backward),
        "slim": slim(),
        "slim, trace on": run_traced,
        "slim, token distance": slim(distance_scope="token"),
        "loop over experts": slim(looped=True),
    }
    if not setting.backward:
        variants["slim, gate closed"] = slim(context_warmup=10**6)
    if config.merge == "fast" and not setting.backward:
        variants["slim, sliced"] = sliced = slim()
        slice_factors(sliced, "default")
    return variants


def time_setting(setting: Setting, config: SlimConfig, rounds: int) -> list[Measured]:
    """Time all variants of one setting in turn, compared with the base and with the LoRA.

    Args:
        setting: the case.
        config: SLIM's sizes; the LoRA gets rank E r.
        rounds: how often each variant has its turn.
    """
    # One sequence, as in a prompt.
    x = torch.randn(1, setting.tokens, setting.width, device=setting.device, dtype=setting.dtype)
    x.requires_grad_(setting.backward)
    grad = torch.randn(1, setting.tokens, setting.width, device=setting.device, dtype=setting.dtype)

    def once(run: Callable[[Tensor], Tensor]) -> None:
        with nullcontext() if setting.backward else torch.inference_mode():
            y = run(x)
        if setting.backward:
            y.backward(grad)
            x.grad = None

    variants = variants_of(setting, config)
    ways = {name: repeated(partial(once, run), setting.device) for name, run in variants.items()}
    return summary(take_turns(ways, rounds), (BASE, LORA))


def settings(device: str, widths: list[int], tokens: list[int]) -> Iterator[Setting]:
    """Every case of a run."""
    for backward in (False, True):
        for width in widths:
            for count in tokens:
                yield Setting(device, dtype_of(device), width, count, backward)
