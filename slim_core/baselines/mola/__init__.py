# SPDX-License-Identifier: Apache-2.0
"""MoLA: a router per Linear, and more experts in some blocks than in others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...method import SlimConfig
from ..entry import Method, common_fields
from ..layer import ExpertsLayer, containers
from ..model import ExpertsModel
from ..places import blocks_of
from .config import MolaConfig, MolaType
from .experts import MolaExperts


__all__ = ["MOLA", "MolaConfig", "MolaExperts", "MolaModel", "MolaType"]


class MolaLayer(ExpertsLayer):
    """A Linear with MoLA's experts: `mola_A` (E, r, C_in), `mola_B` (E, C_out, r), `mola_router` (E, C_in)."""

    experts_cls = MolaExperts
    adapter_layer_names = containers(MolaExperts)


class MolaModel(ExpertsModel):
    """MoLA as a PEFT tuner."""

    prefix = MolaExperts.prefix
    tuner_layer_cls = MolaLayer


def _configure(slim: SlimConfig, options: Mapping[str, Any], linears: Mapping[str, tuple[int, int]]) -> MolaConfig:
    """Experts in the authors' proportions, one to four quarters, with a rank that gives SLIM's total rank on
    average.
    """
    blocks = blocks_of(linears)
    k = min(slim.top_k, slim.num_experts)
    counts = [max(k, round(slim.num_experts * quarters / 4)) for quarters in (1, 2, 3, 4)]
    if blocks < len(counts):
        counts = [counts[block * len(counts) // blocks] for block in range(blocks)]
    defaults: dict[str, Any] = {"num_experts": counts, "top_k": k}
    if "r" not in options:
        mean = sum(counts) / len(counts)
        defaults["r"] = max(1, round(slim.num_experts * slim.r / mean))
        defaults["alpha"] = slim.alpha / slim.r * defaults["r"]
    return MolaConfig(**(common_fields(slim) | defaults | dict(options)))


MOLA = Method("mola", "MoLA", "MOLA", _configure, MolaConfig, MolaModel, MolaExperts)
