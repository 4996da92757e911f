# SPDX-License-Identifier: Apache-2.0
"""Changing how soon the gate of a trained adapter closes; the gate itself is in `gate.py`."""

from __future__ import annotations

from torch import nn

from .gate_setting import GateSetting, check_quantile, stored_quantiles
from .layer import SlimLayer


def set_gate(
    model: nn.Module, *, strength: float | None = None, quantile: float | None = None, adapter_name: str | None = None
) -> None:
    """Change how soon the gate closes, without retraining. A saved adapter keeps the change.

    The same as changing `yield_strength` and `yield_quantile` in its config.

    Args:
        model: a model with SLIM adapters, however they were attached.
        strength: factor in front of the distance; 0 forces the gate open, more closes it sooner. None keeps it.
        quantile: of the training distances that counts as in domain, in the range that the adapter stores
            (`LEVELS`). None keeps it.
        adapter_name: which adapter; None for all that have a router.

    Raises:
        ValueError: if there is no such adapter, or a number is out of its range.
    """
    gate = GateSetting(strength, quantile)
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
        check_quantile(gate.quantile, stored_quantiles(config))
    for config in configs.values():
        if gate.strength is not None:
            config.yield_strength = gate.strength
        if gate.quantile is not None:
            config.yield_quantile = gate.quantile
