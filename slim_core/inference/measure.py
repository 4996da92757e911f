# SPDX-License-Identifier: Apache-2.0
"""How a SLIM adapter measures how far a text is from its training data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

from ..method import SlimConfig, stored_quantiles


@dataclass(frozen=True)
class Measure:
    """How a SLIM adapter measures how far a text is from its training data, and what follows for the LoRA experts.

    Attributes:
        statistic: taken over the channels, "rms" or "max".
        scope: whether the distance is that of the "context" or of the single "token".
        mode: how LoRA experts yield: `SlimConfig.yield_mode`.
        strength: the factor that multiplies the distance.
        quantile: share of the training data that lies within the reference.
        quantiles: those whose distance the adapter stores, ascending; any between them can be chosen instead.
        variance_floor: share of the tokens' variance that counts at least, per channel; 0 for none.
        carries_up: whether the gate follows the mean excess of all routers so far.
        format: version of the adapter's format.
    """

    statistic: Literal["rms", "max"]
    scope: Literal["context", "token"]
    mode: Literal["gate", "calibrated", "paper"]
    strength: float
    quantile: float
    quantiles: tuple[float, ...]
    variance_floor: float
    carries_up: bool
    format: int


def measure_of(config: SlimConfig) -> Measure:
    """How an adapter with a router measures distances."""
    return Measure(
        config.distance,
        cast('Literal["context", "token"]', config.distance_scope),  # a config fills in missing fields
        config.yield_mode,
        config.yield_strength,
        config.yield_quantile,
        stored_quantiles(config),
        config.context_floor,
        config.carries_up,
        config.format_version,
    )
