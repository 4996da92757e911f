# SPDX-License-Identifier: Apache-2.0
"""Tools for the method: rows of one batch, routing traces, importing and exporting LoRAs, adapters for inference
only.
"""

from .compact import fold_masks, slice_factors
from .export import LoraExport, export_lora
from .for_vllm import export_vllm
from .lora_gguf import lora_to_gguf
from .lora_import import PLAIN_STARTS, load_lora, lora_to_slim
from .scopes import RowScopes, adapter_rows, trace_routing, traceable_adapters
from .token_routing import TokenRouting
from .trace import RoutingTrace, RowRouting, identity_share


__all__ = [
    "PLAIN_STARTS",
    "LoraExport",
    "RoutingTrace",
    "RowScopes",
    "RowRouting",
    "TokenRouting",
    "adapter_rows",
    "export_lora",
    "export_vllm",
    "fold_masks",
    "identity_share",
    "load_lora",
    "lora_to_gguf",
    "lora_to_slim",
    "slice_factors",
    "trace_routing",
    "traceable_adapters",
]
