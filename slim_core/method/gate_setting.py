# SPDX-License-Identifier: Apache-2.0
"""What can be asked of a trained adapter's gate: by `set_gate` for all that it reads, or for rows of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .clusters import LEVELS
from .config import SlimConfig
from .fields import TOO_STRONG, abbreviated, check_number


@dataclass(frozen=True)
class GateSetting:
    """How soon a gate closes, in place of what its adapter's config says.

    Attributes:
        strength: in place of `yield_strength`, 0 or more and below 1e38; 0 forces the gate open. None keeps it.
        quantile: in place of `yield_quantile`, above 0 and below 1; where the gate begins to close. None keeps it.

    Raises:
        ValueError: if a number is out of its range.
    """

    strength: float | None = None
    quantile: float | None = None

    def __post_init__(self) -> None:
        if self.strength is not None:
            check_number("strength", self.strength, 0, below=TOO_STRONG)
        if self.quantile is not None:
            check_number("quantile", self.quantile, 0, below=1, strict=True)


AS_TRAINED = GateSetting()


def stored_quantiles(config: SlimConfig) -> tuple[float, ...]:
    """The quantiles of its training distances that an adapter stores, ascending; empty if it has none or no router."""
    if not config.routed or config.yield_mode == "paper":
        return ()
    return (config.yield_quantile,) if config.format_version == 1 else LEVELS


def check_quantile(quantile: float | None, stored: Sequence[float], adapter: str = "the adapter") -> None:
    """Check that an adapter knows the distance of a quantile; between two that it stores, it is interpolated.

    Args:
        quantile: None is the adapter's own, which it always knows.
        stored: of `stored_quantiles`.
        adapter: what to call it.

    Raises:
        ValueError: with a sentence, if it does not.
    """
    if quantile is None or (stored and stored[0] <= quantile <= stored[-1]):
        return
    if not stored:
        why = f"{adapter} stores no training distances, so it has no effect"
    elif len(stored) == 1:
        why = f"{adapter} stores the distance of {stored[0]:g} alone"
    else:
        why = f"it must be from {stored[0]:g} to {stored[-1]:g}, which {adapter} stores"
    raise ValueError(f"The quantile is {abbreviated(quantile)}; {why}.")
