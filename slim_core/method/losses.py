# SPDX-License-Identifier: Apache-2.0
"""The losses that SLIM adds to the task's: L1 on the factors (Section 3.4) and an optional load balance."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor


# Training forwards without a call for the configured extra losses, after which a warning says so.
FORGOTTEN_AFTER = 10


def balance_term(logits: Tensor, weights: Tensor, num_experts: int, valid: Tensor | None) -> Tensor:
    """Load balance of one router over its LoRA experts: E * sum_e f_e P_e, which is 1 when they are used evenly.

    f_e is the share of the kept LoRA slots that went to expert e, P_e its mean probability among the LoRA experts;
    each sums to 1. Yielding lowers all LoRA experts alike, so it does not matter here.

    Args:
        logits: (T, E + I) router logits.
        weights: (T, E + I) kept weights.
        num_experts: E.
        valid: (T,) bool, False for padding; None if every token counts.

    Returns:
        () float32, differentiable through P.
    """
    counted = torch.ones_like(logits[:, :1], dtype=torch.bool) if valid is None else valid.unsqueeze(-1)
    kept = ((weights[:, :num_experts] > 0) & counted).to(logits.dtype).sum(0)
    # Not a product, since values in padding may be infinite.
    probability = torch.where(counted, logits[:, :num_experts], 0).softmax(-1)
    probability = torch.where(counted, probability, 0).sum(0) / counted.sum().clamp(min=1)
    return num_experts * (kept / kept.sum().clamp(min=1) * probability).sum()


class LossTerms:
    """The terms that the SLIM layers of one model add to the loss, forward by forward.

    Attributes:
        expected: whether an adapter with a loss of its own learns in the running forward.
        balance: load-balance terms of the last forward that had any, by adapter.
        added: the losses of the last forward that expected some, without gradient, if they are part of its loss;
            None if they are not.
    """

    def __init__(self) -> None:
        self.expected = False
        self.balance: dict[str, list[Tensor]] = {}
        self.added: dict[str, Tensor] | None = None
        self._balance_of: int | None = None
        self._forgotten = 0

    def begin_forward(self) -> None:
        self.expected = False

    def end_forward(self) -> None:
        self._forgotten += self.expected
        if self.expected and self._forgotten == FORGOTTEN_AFTER:
            warnings.warn(
                "The SLIM config sets `l1_coefficient` or `balance_coefficient`, but the model is given no labels, so "
                "its loss does not hold these losses: add `sum(slim_core.extra_losses(model).values())` to yours.",
                stacklevel=2,
            )

    def expect(self) -> None:
        """Note that an adapter with its own loss is training."""
        if not self.expected:
            self.expected, self.added = True, None

    def asked_for(self) -> None:
        """Note that the losses of the last forward were added or are about to be."""
        self._forgotten = 0

    def add_balance(self, forward: int | None, adapter_name: str, term: Tensor) -> None:
        """A load-balance term of one router in a training forward; those of an earlier forward are dropped."""
        if self._balance_of != forward:
            self.balance, self._balance_of = {}, forward
        self.balance.setdefault(adapter_name, []).append(term)

    def forget(self, adapter_name: str) -> None:
        """Forget an adapter that was deleted."""
        self.balance.pop(adapter_name, None)
