# SPDX-License-Identifier: Apache-2.0
"""The losses that SLIM adds to the task's: L1 on the factors (Section 3.4) and an optional load balance."""

from __future__ import annotations

import torch
from torch import Tensor


def balance_term(logits: Tensor, weights: Tensor, num_experts: int, valid: Tensor | None) -> Tensor:
    """Load balance of one router over its LoRA experts: E * sum_e f_e P_e, which is 1 when they are used evenly.

    f_e is the share of the kept LoRA slots that went to expert e, P_e its mean probability among the LoRA experts;
    each sums to 1. Yielding lowers all LoRA experts alike and so does not enter.

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
    # Not a product: what stands in padding may be infinite.
    probability = torch.where(counted, logits[:, :num_experts], 0).softmax(-1)
    probability = torch.where(counted, probability, 0).sum(0) / counted.sum().clamp(min=1)
    return num_experts * (kept / kept.sum().clamp(min=1) * probability).sum()
