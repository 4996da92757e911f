# SPDX-License-Identifier: Apache-2.0
"""MixLoRA: each MLP is a mixture of MLPs that share the base's weights; MixLoRA-Dy drops part of each update."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ...method import SlimConfig
from ..entry import Method, common_fields
from ..layer import ExpertsLayer, containers
from ..model import ExpertsModel
from .config import MixloraConfig, MixloraType
from .experts import MixloraExperts


__all__ = ["MIXLORA", "MIXLORA_DY", "MixloraConfig", "MixloraExperts", "MixloraModel", "MixloraType"]


class MixloraLayer(ExpertsLayer):
    """An MLP with its experts, or a Linear with a LoRA.

    On an MLP `mixlora_router` (E, C), and for each of gate, up and down `mixlora_gate_A` (E, r, C_in) and
    `mixlora_gate_B` (E, C_out, r); on a Linear `mixlora_A` (1, r, C_in) and `mixlora_B` (1, C_out, r).
    """

    experts_cls = MixloraExperts
    adapter_layer_names = containers(MixloraExperts)


class MixloraModel(ExpertsModel):
    """MixLoRA as a PEFT tuner."""

    prefix = MixloraExperts.prefix
    tuner_layer_cls = MixloraLayer


def _configure(slim: SlimConfig, options: Mapping[str, Any], linears: Mapping[str, tuple[int, int]]) -> MixloraConfig:
    defaults = {"num_experts": slim.num_experts, "top_k": min(slim.top_k, slim.num_experts)}
    return MixloraConfig(**(common_fields(slim) | defaults | dict(options)))


def _configure_dy(
    slim: SlimConfig, options: Mapping[str, Any], linears: Mapping[str, tuple[int, int]]
) -> MixloraConfig:
    defaults = {name: getattr(slim, name) for name in ("mask_rate", "mask_rescale", "mask_seed", "l1_coefficient")}
    config = _configure(slim, defaults | dict(options), linears)
    if not config.mask_rate:
        raise ValueError("MixLoRA-Dy with `mask_rate` 0 is MixLoRA; choose a rate above 0, or that method.")
    return config


MIXLORA = Method(
    "mixlora", "MixLoRA", "MIXLORA", _configure, MixloraConfig, MixloraModel, MixloraExperts, own_places=True
)
MIXLORA_DY = replace(MIXLORA, name="mixlora-dy", title="MixLoRA-Dy", configure=_configure_dy)
