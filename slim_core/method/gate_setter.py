# SPDX-License-Identifier: Apache-2.0
"""Changing how soon the gate of a trained adapter closes; the gate itself is in `gate.py`."""

from __future__ import annotations

import dataclasses

from torch import nn

from .layer import SlimLayer


def set_gate(
    model: nn.Module, *, strength: float | None = None, quantile: float | None = None, adapter_name: str | None = None
) -> None:
    """Change how soon the gate closes, without retraining. A saved adapter keeps the change.

    The same as changing `yield_strength` and `yield_quantile` in its config.

    Args:
        model: a model with SLIM adapters, however they were attached.
        strength: factor in front of the distance; 0 forces the gate open, more closes it sooner. None keeps it.
        quantile: of the training distances that counts as in domain, above 0 and below 1. None keeps it.
        adapter_name: which adapter; None for all that have a router.

    Raises:
        ValueError: if there is no such adapter or a number is out of its range.
    """
    layers = [m for m in model.modules() if isinstance(m, SlimLayer)]
    configs = {
        id(config): config
        for layer in layers
        for name, config in layer.slim_config.items()
        if config.routed and adapter_name in (None, name)
    }
    if not configs:
        raise ValueError(
            "The model has no SLIM adapter with a gate"
            + ("." if adapter_name is None else f" named {adapter_name!r}.")
        )
    for config in configs.values():
        new_strength = config.yield_strength if strength is None else strength
        new_quantile = config.yield_quantile if quantile is None else quantile
        # A copy, whose checks raise before anything has changed.
        dataclasses.replace(config, yield_strength=new_strength, yield_quantile=new_quantile)
        config.yield_strength, config.yield_quantile = new_strength, new_quantile
