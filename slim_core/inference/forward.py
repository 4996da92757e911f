# SPDX-License-Identifier: Apache-2.0
"""The arguments of a decoder's forward, which differ between model families."""

from __future__ import annotations

import inspect
from functools import lru_cache
from typing import Any

from torch import Tensor, nn
from transformers import Cache, PreTrainedModel


@lru_cache(maxsize=16)
def _parameters(forward: Any) -> frozenset[str]:
    return frozenset(inspect.signature(forward).parameters)


def cache_argument(model: nn.Module) -> str:
    """Name of the argument of a model's forward for the key-value cache; transformers 5.24 renames it."""
    return "cache" if "cache" in _parameters(type(model).forward) else "past_key_values"


def forward_arguments(
    model: PreTrainedModel, ids: Tensor, positions: Tensor, mask: Tensor | None, cache: Cache, keep: int
) -> dict[str, Any]:
    """Arguments of one forward of `model`.

    Args:
        model: a causal language model.
        ids: (B, T) int64 tokens.
        positions: (B, T) int64 positions of these in their own text; padding has 0.
        mask: (B, S + T) int64 over cache and tokens, 0 for padding; None if there is none.
        cache: of S tokens; grows by T.
        keep: for how many of the last tokens logits are wanted. A model that cannot choose gives them all.
    """
    parameters = _parameters(type(model).forward)
    arguments: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "use_cache": True}
    arguments[cache_argument(model)] = cache
    if "position_ids" in parameters:
        arguments["position_ids"] = positions
    if "logits_to_keep" in parameters:
        arguments["logits_to_keep"] = keep
    return arguments
