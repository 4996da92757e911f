# SPDX-License-Identifier: Apache-2.0
"""The routing of a single token, in plain Python numbers."""

from __future__ import annotations

from typing import NamedTuple


class TokenRouting(NamedTuple):
    """How one token was routed.

    Attributes:
        weights: of the E + I experts, zero for experts that were not kept.
        distance: d.
        cluster: index of the nearest cluster.
        sent: the LoRA experts that it was sent to, each with its weight.
        gate: g.
        reference: distance up to which nothing yields.
    """

    weights: list[float]
    distance: float
    cluster: int
    sent: list[tuple[int, float]]
    gate: float = 1.0
    reference: float = 0.0
