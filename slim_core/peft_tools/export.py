# SPDX-License-Identifier: Apache-2.0
"""Static export: freeze the mean routing and write one plain PEFT LoRA that any LoRA server can load."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor

from ..method import SlimConfig, SlimLayer, as_list
from .lora_import import lora_to_slim
from .scopes import trace_routing


@dataclass
class LoraExport:
    """The result of an export: what was written, and how much it differs from the routed adapter on the calibration
    text.

    Attributes:
        directory: where the LoRA is.
        tokens: calibration tokens.
        mean_kl: mean over tokens of KL(routed || exported) of the next-token distributions, in nats.
        max_kl: its maximum.
        same_top1: share of tokens at which both find the same next token likeliest.
        weights: mean weight of each expert, (E + I,) by module; LoRA experts first.
    """

    directory: Path
    tokens: int
    mean_kl: float
    max_kl: float
    same_top1: float
    weights: dict[str, Tensor]


@torch.no_grad()
def export_lora(
    model: PeftModel, adapter_name: str, batches: Iterable[Mapping[str, Tensor]], directory: str | os.PathLike
) -> LoraExport:
    """Freeze an adapter's mean routing over a calibration set and save the result as a plain PEFT LoRA.

    The LoRA has the concatenated rank E r. It computes W x + sum_e mean(w_e) s B'_e A'_e x, exactly the mixture under
    these weights. What is lost is the routing by token, and with it SLIM's protection of other text: the report says
    how much that is on the calibration text.

    Args:
        model: a `PeftModel` with the SLIM adapter.
        adapter_name: the adapter to export.
        batches: calibration batches for `model(**batch)`; an `attention_mask` says what is padding.
        directory: folder to write `adapter_config.json` and `adapter_model.safetensors` to.

    Raises:
        ValueError: if there is no such adapter or no calibration token, or if it uses `merge="dare"`, whose masked
            products have no low rank.
    """
    config, layers = layers_of(model, adapter_name)
    if config.merge == "dare" and config.mask_rate > 0:
        raise ValueError(
            'An adapter with merge="dare" cannot be exported: a product masked entry by entry has no low rank. Train '
            'it with merge="fast".'
        )
    batches = list(batches)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        weights = _mean_weights(model, adapter_name, batches)
        state_dict = _lora_state_dict(model, adapter_name, layers, weights)
        ranks = {name: len(layer.slim_A[adapter_name]) for name, layer in layers.items()}
        lora = lora_config(config, ranks, config.num_experts * config.r)
        difference = _divergence(model, adapter_name, lora, state_dict, batches)
    finally:
        for module, training in modes:
            module.training = training
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    lora.save_pretrained(str(directory))
    save_file(state_dict, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    return LoraExport(directory, *difference, weights)


def layers_of(model: PeftModel, adapter_name: str) -> tuple[SlimConfig, dict[str, SlimLayer]]:
    """The configuration of a SLIM adapter, and its layers by name; raises ValueError if there is no such adapter."""
    config = model.peft_config.get(adapter_name)
    adapted = (m for m in model.modules() if isinstance(m, SlimLayer) and adapter_name in m.slim_A)
    layers: dict[str, SlimLayer] = {layer.module_name: layer for layer in adapted}
    if not isinstance(config, SlimConfig) or not layers:
        raise ValueError(f"The model has no SLIM adapter named {adapter_name!r}.")
    return config, layers


def _run(model: PeftModel, adapter_name: str, batch: Mapping[str, Tensor]) -> Tensor:
    """(B, T, vocabulary) logits of one batch, every row with the adapter."""
    moved = {key: value.to(model.device) for key, value in batch.items()}
    return model(**moved, adapter_names=[adapter_name] * len(next(iter(moved.values())))).logits


def _mean_weights(model: PeftModel, adapter_name: str, batches: list[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    sums: dict[str, Tensor] = {}
    tokens = 0
    for batch in batches:
        with trace_routing(model) as trace:
            _run(model, adapter_name, batch)
        for row in trace.rows:
            routing = trace.row(row)
            tokens += routing.weights.shape[1]
            for module, weight in zip(routing.modules, routing.weights.sum(1), strict=True):
                sums[module] = sums.get(module, 0) + weight
    if tokens == 0:
        raise ValueError("The export needs calibration text: `batches` holds no token.")
    return {module: total / tokens for module, total in sums.items()}


def _lora_state_dict(
    model: PeftModel, adapter_name: str, layers: dict[str, SlimLayer], weights: dict[str, Tensor]
) -> dict[str, Tensor]:
    saved = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    state_dict = {key: value for key, value in saved.items() if ".slim_" not in key}
    for name, layer in layers.items():
        a, b = layer.slim_A[adapter_name], layer.slim_B[adapter_name]
        experts = layer.slim_config[adapter_name].num_experts
        frozen = weights[name][:experts].to(b) * layer.scaling[adapter_name]
        b = b * frozen.repeat_interleave(b.shape[1] // experts)
        if adapter_name in layer.slim_columns:
            a = a * layer.slim_columns[adapter_name]
            b = b * layer.slim_rows[adapter_name].unsqueeze(-1)
        state_dict[f"base_model.model.{name}.lora_A.weight"] = a
        state_dict[f"base_model.model.{name}.lora_B.weight"] = b
    return {key: value.detach().cpu().contiguous() for key, value in state_dict.items()}


def lora_config(config: SlimConfig, ranks: Mapping[str, int], rank: int) -> LoraConfig:
    """For a LoRA that is written in a SLIM adapter's place. Scaling is 1 everywhere: alpha equals the rank.

    Args:
        config: of the SLIM adapter.
        ranks: of the LoRA, by module.
        rank: of most modules.
    """
    other = {name: r for name, r in ranks.items() if r != rank}
    return LoraConfig(
        r=rank,
        lora_alpha=rank,
        rank_pattern=other,
        alpha_pattern=dict(other),
        target_modules=as_list(config.target_modules),
        exclude_modules=as_list(config.exclude_modules),
        modules_to_save=config.modules_to_save,
        trainable_token_indices=config.trainable_token_indices,
        layers_to_transform=config.layers_to_transform,
        layers_pattern=config.layers_pattern,
        task_type=config.task_type,
        base_model_name_or_path=config.base_model_name_or_path,
        inference_mode=True,
    )


class _Difference(NamedTuple):
    """As in `LoraExport`."""

    tokens: int
    mean_kl: float
    max_kl: float
    same_top1: float


def _divergence(
    model: PeftModel,
    adapter_name: str,
    lora: LoraConfig,
    state_dict: dict[str, Tensor],
    batches: list[Mapping[str, Tensor]],
) -> _Difference:
    """Compare routed and exported adapter on the calibration text, with the export temporarily a row of the same
    model.
    """
    name = f"{adapter_name}-static"
    slim, converted = lora_to_slim(lora, state_dict)
    model.add_adapter(name, slim)
    try:
        set_peft_model_state_dict(model, converted, name)
        model.eval()
        divergences: list[Tensor] = []
        agreements: list[Tensor] = []
        for batch in batches:
            routed, static = (_run(model, adapter, batch).float().log_softmax(-1) for adapter in (adapter_name, name))
            mask = batch.get("attention_mask")
            valid = torch.ones(routed.shape[:-1]) if mask is None else mask
            valid = valid.to(routed.device, torch.bool)
            # Never negative, except by rounding.
            kl = F.kl_div(static, routed, log_target=True, reduction="none").sum(-1).clamp(min=0)
            divergences.append(kl[valid])
            agreements.append((routed.argmax(-1) == static.argmax(-1))[valid])
    finally:
        model.delete_adapter(name)
    kl, same = torch.cat(divergences), torch.cat(agreements)
    return _Difference(len(kl), kl.mean().item(), kl.max().item(), same.float().mean().item())
