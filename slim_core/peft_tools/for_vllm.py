# SPDX-License-Identifier: Apache-2.0
"""A SLIM adapter as a LoRA whose factors also hold the router and the clusters, for the plugin in `deploy/vllm`."""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.nn.functional as F
from peft import PeftModel
from safetensors.torch import save_file
from torch import Tensor

from ..method import SlimConfig, SlimLayer
from .export import layers_of, lora_config


# First number of the first row of A, by which the plugin knows such a LoRA.
MARK = 7_514_681
# The ranks that vLLM may be started with.
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


@torch.no_grad()
def export_vllm(model: PeftModel, adapter_name: str, directory: str | os.PathLike) -> int:
    """Write an adapter for vLLM with the plugin of `deploy/vllm`. Without the plugin its answers mean nothing.

    Each A, (R, C_in), has these rows: a header, the E r rows of the experts, and where the module has a router of its
    own, its E + I rows, the N centres and as many rows of one over the standard deviations. B, (C_out, R), is zero but
    for the experts.

    Args:
        model: a `PeftModel` with the SLIM adapter.
        adapter_name: the adapter.
        directory: folder to write `adapter_config.json` and `adapter_model.safetensors` to.

    Returns:
        The least `--max-lora-rank` with which vLLM reads it.

    Raises:
        ValueError: if there is no such adapter, or the plugin does not know what it computes.
    """
    config, layers = layers_of(model, adapter_name)
    _check(config)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        factors = {name: _factors(layer, adapter_name) for name, layer in layers.items()}
    finally:
        for module, training in modes:
            module.training = training
    most = max(len(a) for a, _ in factors.values())
    rank = next((rank for rank in RANKS if rank >= most), None)
    if rank is None:
        raise ValueError(
            f"vLLM takes LoRAs of up to rank {RANKS[-1]}, and with its clusters this adapter has {most}. Train it "
            "with fewer experts or clusters."
        )
    state_dict = {}
    for name, (a, b) in factors.items():
        state_dict[f"base_model.model.{name}.lora_A.weight"] = F.pad(a, (0, 0, 0, rank - len(a)))
        state_dict[f"base_model.model.{name}.lora_B.weight"] = F.pad(b, (0, rank - b.shape[1]))
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    lora_config(config, dict.fromkeys(layers, rank), rank).save_pretrained(str(directory))
    save_file(
        {key: tensor.contiguous() for key, tensor in state_dict.items()}, directory / "adapter_model.safetensors"
    )
    return rank


def _check(config: SlimConfig) -> None:
    if not config.routed:
        raise ValueError(
            "An adapter with one expert is a plain LoRA, for which vLLM needs no plugin: use `export_lora`."
        )
    known = {"distance_scope": "context", "yield_mode": "gate", "router_hidden": 0}
    known |= dict.fromkeys(("modules_to_save", "trainable_token_indices"))
    for field, value in known.items():
        if getattr(config, field) != value:
            raise ValueError(f"The plugin for vLLM knows adapters with {field}={value!r} only.")
    if config.merge == "dare" and config.mask_rate > 0:
        raise ValueError('The plugin for vLLM does not know merge="dare". Train the adapter with merge="fast".')


def _factors(layer: SlimLayer, name: str) -> tuple[Tensor, Tensor]:
    config, router = layer.slim_config[name], layer.routers[name]
    a, b = layer.slim_A[name].float(), layer.slim_B[name].float() * layer.scaling[name]
    if name in layer.slim_columns:
        a = a * layer.slim_columns[name]
        b = b * layer.slim_rows[name].unsqueeze(-1)
    owns = name in layer.slim_router
    opening = router.opening
    header: list[float] = [MARK, config.num_experts, config.num_identity, len(a), config.num_clusters if owns else 0]
    header += [config.top_k, config.context_warmup, config.carries_up, config.distance == "max", len(opening)]
    rows = [a]
    if owns:
        tables, reference, folded = router.tables(training=False)
        assert reference is not None
        header += [config.yield_strength, *opening, *reference.tolist(), *folded.bias.tolist()]
        rows += [folded.weight, tables.center, tables.scale]
    if len(header) > layer.in_features:
        raise ValueError(
            f"`{layer.module_name}` has {layer.in_features} inputs; the plugin for vLLM needs {len(header)}."
        )
    first = F.pad(torch.tensor(header), (0, layer.in_features - len(header))).unsqueeze(0)
    return torch.cat([first, *(row.float().cpu() for row in rows)]), F.pad(b.cpu(), (1, 0))
