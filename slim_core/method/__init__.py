# SPDX-License-Identifier: Apache-2.0
"""SLIM as a PEFT method. Importing this package makes PEFT know it."""

from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)

from .batch_rows import adapter_rows
from .config import SlimConfig, SlimType
from .context import BASE_ROW
from .export import LoraExport, export_lora
from .layer import SlimLayer
from .linear import Linear
from .model import SlimModel, extra_losses, fold_masks, slice_factors
from .quantised import guard_cpu_4bit
from .routing import Router, Routing
from .rows import load_lora, lora_to_slim
from .trace import RoutingTrace, RowRouting, trace_routing


__all__ = [
    "BASE_ROW",
    "Linear",
    "LoraExport",
    "Router",
    "Routing",
    "RoutingTrace",
    "RowRouting",
    "SlimConfig",
    "SlimLayer",
    "SlimModel",
    "adapter_rows",
    "export_lora",
    "extra_losses",
    "fold_masks",
    "guard_cpu_4bit",
    "load_lora",
    "lora_to_slim",
    "slice_factors",
    "trace_routing",
]

# `register_peft_method` accepts members of PEFT's own enum only. These are the tables it fills.
PEFT_TYPE_TO_CONFIG_MAPPING[SlimType.SLIM] = SlimConfig
PEFT_TYPE_TO_TUNER_MAPPING[SlimType.SLIM] = SlimModel
PEFT_TYPE_TO_PREFIX_MAPPING[SlimType.SLIM] = SlimModel.prefix
