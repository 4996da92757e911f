# SPDX-License-Identifier: Apache-2.0
"""The gate: how much of LoRA a token gets, by how far its text is from the training data.

For each token, at each router:

    e  = max(d - q, 0)                 excess: the part of the distance d that is beyond the reference q
    ē  = mean of e over the routers that have run so far in this forward; with `carry_up=False`, e itself
    g  = clamp(1 - strength * ē, 0, 1)
    g  = 0                             for the first `context_warmup` tokens of a context
    w' = g w + (1 - g) u               weights of the experts; u is even over the identity experts, 0 for the others

d and q belong to the context of the token, q to contexts of its length; with `distance_scope="token"` they belong to
the token itself, and neither `carry_up` nor `context_warmup` applies. The distance is computed in `routing.py`, the
reference learned in `clusters.py`.

The mean over routers (`carry_up`) is there because a single Linear is a poor judge: a context that most of them reject
is within the reference at some.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import SlimConfig


class EarlierExcess(NamedTuple):
    """The excesses of the routers that ran before this one.

    Attributes:
        total: (rows T,) float32 sum of their excesses.
        routers: how many they are.
    """

    total: Tensor
    routers: int

    def mean_with(self, excess: Tensor) -> Tensor:
        """(rows T,) mean excess of these routers and of one more."""
        return (self.total + excess) / (self.routers + 1)


class ExcessSum:
    """Adds up the excesses of one adapter's routers during one forward, so no cache has to store them.

    Args:
        batch: B.
        tokens: T.
        device: where the first router is.

    Attributes:
        total: (B, T) float32 sum over the routers so far.
        routers: how many have run.
    """

    def __init__(self, batch: int, tokens: int, device: torch.device) -> None:
        self.total = torch.zeros(batch, tokens, device=device)
        self.routers = 0

    def so_far(self, rows: slice | Tensor | None, device: torch.device) -> EarlierExcess:
        """The sum for some rows of the batch (None for all), on the device of the router that asks."""
        total = self.total if rows is None else self.total[rows]
        return EarlierExcess(total.reshape(-1).to(device), self.routers)

    def add(self, rows: slice | Tensor | None, excess: Tensor) -> None:
        """Add a router's excess, (rows T,), for these rows."""
        excess = excess.detach().to(self.total.device).view(-1, self.total.shape[1])
        if rows is None:
            # Not in place: a forward repeated by a gradient checkpoint needs the earlier value.
            self.total = self.total + excess
        else:
            self.total[rows] += excess
        self.routers += 1


class Yielding(NamedTuple):
    """How LoRA experts yield as the distance grows.

    Attributes:
        mode: "gate" multiplies their weights by g; "calibrated" subtracts strength * ē from their logits, "paper"
            strength * d.
        strength: a factor for all tokens, or (T,) one for each.
        reference: () or (T,) q, the distance up to which nothing yields; None with "paper".
        closed: (T,) bool, tokens for which the gate is closed whatever their distance; None if there are none.
        earlier: the excesses of the routers before this one; None if each router follows its own excess.
    """

    mode: Literal["gate", "calibrated", "paper"]
    strength: float | Tensor
    reference: Tensor | None = None
    closed: Tensor | None = None
    earlier: EarlierExcess | None = None

    @classmethod
    def of(
        cls,
        config: SlimConfig,
        strength: float | Tensor,
        references: Tensor | None,
        *,
        bucket: Tensor | None = None,
        length: Tensor | None = None,
        earlier: EarlierExcess | None = None,
    ) -> Yielding:
        """As an adapter's config wants it: by context if `bucket` and `length` are given, otherwise by token.

        Args:
            config: of the adapter.
            strength: see above.
            references: (buckets,) q by the length of a context, () the same for all, or None.
            bucket: (T,) int64, which of them belongs to each token's context.
            length: (T,) tokens in each token's context so far.
            earlier: see above.
        """
        reference = references
        if references is not None and references.dim():
            reference = references[0] if bucket is None else references[bucket]
        closed = None
        if length is not None and config.context_warmup:
            closed = length <= config.context_warmup
        return cls(config.yield_mode, strength, reference, closed, earlier)


def excess_over_reference(distance: Tensor, yielding: Yielding) -> Tensor:
    """e = max(d - q, 0), or d with the paper's yielding; (T,) to (T,)."""
    return distance if yielding.reference is None else F.relu(distance - yielding.reference)


def gate_of(excess: Tensor, yielding: Yielding) -> Tensor:
    """g = clamp(1 - strength * ē, 0, 1), and 0 for tokens whose gate is closed; (T,) excess ē to (T,)."""
    gate = (1 - yielding.strength * excess).clamp(0, 1)
    return gate if yielding.closed is None else gate.masked_fill(yielding.closed, 0)


def apply_gate(weights: Tensor, gate: Tensor, num_experts: int) -> Tensor:
    """w' = g w + (1 - g) u: the identity experts share what the gate leaves over.

    Where g is 0 no LoRA expert is left.

    Args:
        weights: (T, E + I) kept weights w.
        gate: (T,) g.
        num_experts: E.

    Returns:
        (T, E + I).
    """
    gated = weights * gate.unsqueeze(-1)
    identity = weights.shape[-1] - num_experts
    if identity:
        # In place on this new product; the gate itself has no gradient.
        gated.narrow(-1, num_experts, identity).add_(((1 - gate) / identity).unsqueeze(-1))
    return gated


def lower_logits(logits: Tensor, excess: Tensor, strength: float | Tensor, num_experts: int) -> Tensor:
    """Instead of a gate, the paper's weight yielding: subtract `strength * excess` from the LoRA experts' logits.

    Args:
        logits: (T, E + I) router logits.
        excess: (T,) ē, or d with the paper's yielding.
        strength: a number or (T,).
        num_experts: E.

    Returns:
        (T, E + I).
    """
    if not torch.is_grad_enabled():
        # The same products and differences as below, to the bit: a gradient checkpoint runs both.
        lowered = logits.clone()
        lowered.narrow(-1, 0, num_experts).sub_((strength * excess).unsqueeze(-1))
        return lowered
    lora, identity = logits.split([num_experts, logits.shape[-1] - num_experts], dim=-1)
    return torch.cat([lora - (strength * excess).unsqueeze(-1), identity], dim=-1)
