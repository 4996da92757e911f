# SPDX-License-Identifier: Apache-2.0
"""SLIM: fine-tune a language model without making it forget. Importing this package registers SLIM with PEFT."""

from .method import (
    SlimConfig,
    SlimModel,
    export_lora,
    extra_losses,
    load_lora,
    set_gate,
    slice_factors,
    trace_routing,
    turn_opening,
)


__all__ = [
    "SlimConfig",
    "SlimModel",
    "export_lora",
    "extra_losses",
    "load_lora",
    "set_gate",
    "slice_factors",
    "trace_routing",
    "turn_opening",
]
