# SPDX-License-Identifier: Apache-2.0
"""SLIM as a PEFT method. Importing this package registers it with PEFT."""

from importlib import import_module
from typing import Any

from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)

from .batch_rows import BASE_ROW, BatchRows, check_names
from .clusters import LEVELS
from .config import SlimConfig, SlimType
from .context import ForwardContext, context_of, drop_context, in_backward, keep_context
from .contexts import LENGTH_BUCKETS
from .extra_losses import add_to_loss, extra_losses
from .fields import abbreviated, check_choice, check_integer, check_number
from .fingerprint import difference, fingerprint_of_shapes
from .gate_setter import set_gate
from .gate_setting import AS_TRAINED, GateSetting, check_quantile, stored_quantiles
from .layer import SlimLayer
from .linear import Linear
from .merging import fast_masks, module_seed
from .model import SAME_INPUT, SlimModel
from .quantised import guard_cpu_4bit
from .routing import ClusterTables, Router, Routing
from .rows_model import RowsModel, check_name
from .sequence_state import RowsOf, RowState, put_row_states, put_together, state_of_row
from .targets import as_list, base_modules, is_supported
from .turns import opening_of, turn_opening


__all__ = [
    "AS_TRAINED",
    "BASE_ROW",
    "LENGTH_BUCKETS",
    "LEVELS",
    "SAME_INPUT",
    "BatchRows",
    "ClusterTables",
    "ForwardContext",
    "GateSetting",
    "Linear",
    "Router",
    "Routing",
    "RowsModel",
    "RowState",
    "RowsOf",
    "SlimConfig",
    "SlimLayer",
    "SlimModel",
    "SlimType",
    "add_to_loss",
    "as_list",
    "base_modules",
    "check_choice",
    "check_integer",
    "check_name",
    "check_names",
    "check_number",
    "check_quantile",
    "context_of",
    "difference",
    "drop_context",
    "extra_losses",
    "fast_masks",
    "fingerprint_of_shapes",
    "guard_cpu_4bit",
    "in_backward",
    "is_supported",
    "keep_context",
    "module_seed",
    "opening_of",
    "put_row_states",
    "put_together",
    "set_gate",
    "abbreviated",
    "state_of_row",
    "stored_quantiles",
    "turn_opening",
]

# `register_peft_method` accepts members of PEFT's own enum only. These are the tables it fills. They are declared for
# that enum alone, but PEFT looks a method up by any string that equals its name.
PEFT_TYPE_TO_CONFIG_MAPPING[SlimType.SLIM] = SlimConfig  # type: ignore[index]  # no member of PEFT's closed enum
PEFT_TYPE_TO_TUNER_MAPPING[SlimType.SLIM] = SlimModel  # type: ignore[index]  # the same
PEFT_TYPE_TO_PREFIX_MAPPING[SlimType.SLIM] = SlimModel.prefix  # type: ignore[index]  # the same


def __getattr__(name: str) -> Any:
    if name == "fold_masks":  # it was here before there was `slim_core.peft_tools`
        return import_module("slim_core.peft_tools").fold_masks
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
