# SPDX-License-Identifier: Apache-2.0
"""Methods to compare SLIM with. Importing this package registers those that PEFT does not have itself."""

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

from .config import ExpertsConfig
from .entry import Method
from .experts import Experts, Running, Tensors
from .layer import ExpertsLayer
from .model import ExpertsModel
from .places import Place, block_of, blocks_of, gated_mlps
from .registry import KINDS, METHODS, experts_of


__all__ = [
    "KINDS",
    "METHODS",
    "Experts",
    "ExpertsConfig",
    "ExpertsLayer",
    "ExpertsModel",
    "Method",
    "Place",
    "Running",
    "Tensors",
    "block_of",
    "blocks_of",
    "experts_of",
    "gated_mlps",
]

# `register_peft_method` accepts members of PEFT's own enum only. These are the tables it fills.
for _method in KINDS.values():
    if _method.tuner is not None:
        PEFT_TYPE_TO_CONFIG_MAPPING[_method.peft_type] = _method.config_cls  # type: ignore[index]
        PEFT_TYPE_TO_TUNER_MAPPING[_method.peft_type] = _method.tuner  # type: ignore[index]
        PEFT_TYPE_TO_PREFIX_MAPPING[_method.peft_type] = _method.tuner.prefix  # type: ignore[index]
