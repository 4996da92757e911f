# SPDX-License-Identifier: Apache-2.0
"""DISeL: a LoRA with a gate for each of its ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...method import SlimConfig
from ..entry import Method, common_fields
from ..layer import ExpertsLayer, containers
from ..model import ExpertsModel
from .config import DiselConfig, DiselType
from .experts import DiselExperts


__all__ = ["DISEL", "DiselConfig", "DiselExperts", "DiselModel", "DiselType"]


class DiselLayer(ExpertsLayer):
    """A Linear with DISeL: `disel_A` (r, C_in), `disel_B` (C_out, r), `disel_gate` (r, C_in), `disel_gate_bias`."""

    experts_cls = DiselExperts
    adapter_layer_names = containers(DiselExperts)


class DiselModel(ExpertsModel):
    """DISeL as a PEFT tuner."""

    prefix = DiselExperts.prefix
    tuner_layer_cls = DiselLayer


def _configure(slim: SlimConfig, options: Mapping[str, Any], linears: Mapping[str, tuple[int, int]]) -> DiselConfig:
    """With SLIM's total rank and its factor alpha / r."""
    defaults = {"r": slim.num_experts * slim.r, "alpha": slim.num_experts * slim.alpha}
    return DiselConfig(**(common_fields(slim) | defaults | dict(options)))


def _rates(config: DiselConfig) -> dict[str, float]:
    return {"disel_gate": config.gate_rate, "disel_gate_bias": config.gate_rate}


DISEL = Method("disel", "DISeL", "DISEL", _configure, DiselConfig, DiselModel, DiselExperts, rates=_rates)
