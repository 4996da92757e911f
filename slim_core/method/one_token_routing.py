# SPDX-License-Identifier: Apache-2.0
"""How one token that came alone was routed, in Python's numbers."""

from __future__ import annotations

from typing import NamedTuple


class TokenRouting(NamedTuple):
    """How one token was routed.

    Attributes:
        weights: of the E + I experts, zero for those that were not kept.
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


# What a plain LoRA does with every token.
UNROUTED = TokenRouting([1.0], 0.0, -1, [(0, 1.0)])
