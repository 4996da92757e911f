# SPDX-License-Identifier: Apache-2.0
"""The verdict in numbers: whether SLIM judged a prompt to be like its training data, and whether its answer is
the base's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .types import RoutingRecord


# How far gates close, from which a prompt counts as unlike the training data, and up to which as like it.
UNLIKE, LIKE = 0.9, 0.3


@dataclass(frozen=True)
class Verdict:
    """How SLIM's gate judged the last turn of a conversation.

    Attributes:
        identity: mean share over Linears and tokens, of the last turn and the answer to it, that went past LoRA.
        distance: median distance of the same tokens' contexts; a few Linears may be many times as far as the others.
        reference: median of what still counts as in domain there.
        closed: share of the gates that are 0.
        exact: whether every gate was 0 at every token that was read, earlier turns included, and the adapter changes
            nothing else: then each Linear gave the base's output, so that the answer is the base's by construction.
        closing: mean of 1 - g over Linears and tokens: what the gates took from LoRA. A router may send tokens to
            identity experts by itself, so `identity` may be higher.
        kind: "like" the training data, "unlike" it, or "mixed".
    """

    identity: float
    distance: float
    reference: float
    closed: float
    exact: bool
    closing: float

    @property
    def kind(self) -> Literal["like", "unlike", "mixed"]:
        # In whole per cent, as people see it.
        closing = round(self.closing, 2)
        if closing >= UNLIKE:
            return "unlike"
        return "like" if closing <= LIKE else "mixed"

    @property
    def goes_past(self) -> bool:
        """Whether a good part went past LoRA although the prompt is like the training data."""
        return self.kind == "like" and round(self.identity, 2) > LIKE


def verdict_of(routing: RoutingRecord) -> Verdict:
    """Sum up a record.

    Args:
        routing: of a SLIM row.
    """
    start = first_judged(routing)
    gate = routing.gate[:, start:]
    return Verdict(
        identity=routing.identity[:, start:].mean().item(),
        distance=routing.distance[:, start:].median().item(),
        reference=routing.reference[:, start:].median().item(),
        closed=(gate == 0).float().mean().item(),
        exact=routing.complete and bool((routing.gate == 0).all()),
        closing=1 - gate.mean().item(),
    )


def first_judged(routing: RoutingRecord) -> int:
    """The first token that counts in a verdict."""
    # The token that opens a turn is the same in every turn and carries no information.
    return min(routing.turn + 1, routing.gate.shape[1] - 1)
