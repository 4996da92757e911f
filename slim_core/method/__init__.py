# SPDX-License-Identifier: Apache-2.0
"""SLIM as a PEFT method. Importing this package makes PEFT know it."""

from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)

from .batch_rows import adapter_rows
from .clusters import LEVELS
from .config import SlimConfig, SlimType
from .context import BASE_ROW
from .contexts import LENGTH_BUCKETS
from .export import LoraExport, export_lora
from .fingerprint import difference, fingerprint_of_shapes
from .layer import SlimLayer
from .linear import Linear
from .model import SAME_INPUT, SlimModel, extra_losses, fold_masks, set_gate, slice_factors
from .quantised import guard_cpu_4bit
from .routing import Router, Routing
from .rows import PLAIN_STARTS, load_lora, lora_to_slim
from .sequence_state import drop_padding
from .targets import base_modules, is_supported
from .trace import RoutingTrace, RowRouting, trace_routing
from .turns import opening_of, turn_opening


__all__ = [
    "BASE_ROW",
    "LENGTH_BUCKETS",
    "LEVELS",
    "PLAIN_STARTS",
    "SAME_INPUT",
    "Linear",
    "LoraExport",
    "Router",
    "Routing",
    "RoutingTrace",
    "RowRouting",
    "SlimConfig",
    "SlimLayer",
    "SlimModel",
    "SlimType",
    "adapter_rows",
    "base_modules",
    "difference",
    "drop_padding",
    "export_lora",
    "extra_losses",
    "fingerprint_of_shapes",
    "fold_masks",
    "guard_cpu_4bit",
    "is_supported",
    "load_lora",
    "lora_to_slim",
    "opening_of",
    "set_gate",
    "slice_factors",
    "trace_routing",
    "turn_opening",
]

# `register_peft_method` accepts members of PEFT's own enum only. These are the tables it fills.
PEFT_TYPE_TO_CONFIG_MAPPING[SlimType.SLIM] = SlimConfig
PEFT_TYPE_TO_TUNER_MAPPING[SlimType.SLIM] = SlimModel
PEFT_TYPE_TO_PREFIX_MAPPING[SlimType.SLIM] = SlimModel.prefix
