# SPDX-License-Identifier: Apache-2.0
"""LoRAMoE: all experts are active for every token, weighted by a router per Linear."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...method import SlimConfig
from ..entry import Method, common_fields
from ..layer import ExpertsLayer, containers
from ..model import ExpertsModel
from .config import LoramoeConfig, LoramoeType
from .experts import LoramoeExperts, sample_types


__all__ = ["LORAMOE", "LoramoeConfig", "LoramoeExperts", "LoramoeModel", "LoramoeType", "sample_types"]


class LoramoeLayer(ExpertsLayer):
    """A Linear with LoRAMoE's experts: `loramoe_A` (E, r, C_in), `loramoe_B` (E, C_out, r), `loramoe_router`."""

    experts_cls = LoramoeExperts
    adapter_layer_names = containers(LoramoeExperts)


class LoramoeModel(ExpertsModel):
    """LoRAMoE as a PEFT tuner."""

    prefix = LoramoeExperts.prefix
    tuner_layer_cls = LoramoeLayer


def _configure(slim: SlimConfig, options: Mapping[str, Any], linears: Mapping[str, tuple[int, int]]) -> LoramoeConfig:
    return LoramoeConfig(**(common_fields(slim) | {"num_experts": slim.num_experts} | dict(options)))


LORAMOE = Method("loramoe", "LoRAMoE", "LORAMOE", _configure, LoramoeConfig, LoramoeModel, LoramoeExperts)
