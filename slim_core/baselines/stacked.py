# SPDX-License-Identifier: Apache-2.0
"""Experts of one Linear as two stacked tensors, applied to tokens by matrix products without loops.

E experts of rank r are A (E, r, C_in) and B (E, C_out, r). What an expert adds is B_e A_e x.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def weighted_sum(x: Tensor, a: Tensor, b: Tensor, weights: Tensor | None = None) -> Tensor:
    """sum_e w_e B_e A_e x for each token, in two products; weights of 0 make it a top-k.

    Args:
        x: (T, C_in).
        a: (E, r, C_in).
        b: (E, C_out, r).
        weights: (T, E); None for 1 each.

    Returns:
        (T, C_out).
    """
    hidden = F.linear(x, a.flatten(0, 1)).unflatten(-1, a.shape[:2])
    if weights is not None:
        hidden = _kept(hidden, weights != 0) * weights.unsqueeze(-1).to(hidden.dtype)
    return F.linear(hidden.flatten(-2), side_by_side(b))


def chosen(x: Tensor, a: Tensor, b: Tensor, experts: Tensor) -> Tensor:
    """B_e A_e x for the K chosen experts of each token, one by one.

    Args:
        x: (T, C_in), or (T, K, C_in) with an input for each of them.
        a: (E, r, C_in).
        b: (E, C_out, r).
        experts: (T, K) int64, which.

    Returns:
        (T, K, C_out).
    """
    return F.linear(chosen_hidden(x, a, experts).flatten(-2), side_by_side(b))


def chosen_hidden(x: Tensor, a: Tensor, experts: Tensor) -> Tensor:
    """(T, K, E, r) A_e x, and 0 for every expert but the chosen one; arguments as of `chosen`."""
    hidden = F.linear(x, a.flatten(0, 1)).unflatten(-1, a.shape[:2])
    if x.dim() == 2:
        hidden = hidden.unsqueeze(1)
    return _kept(hidden, F.one_hot(experts, a.shape[0]).bool())


def side_by_side(b: Tensor) -> Tensor:
    """(C_out, E r) from (E, C_out, r)."""
    return b.transpose(0, 1).flatten(1)


def _kept(hidden: Tensor, routed: Tensor) -> Tensor:
    # Not a product, since an expert's output for a token that is not routed to it may be infinite in half precision.
    return hidden.masked_fill(~routed.unsqueeze(-1), 0)


def top_k(probabilities: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of (T, E) probabilities, divided by their sum: (T, k) weights and (T, k) int64 experts."""
    weights, experts = probabilities.topk(k, dim=-1)
    return weights / weights.sum(-1, keepdim=True), experts


def spread(weights: Tensor, experts: Tensor, num_experts: int) -> Tensor:
    """(T, E) weights, 0 for the experts that are not among the (T, k) chosen ones."""
    return weights.new_zeros(len(weights), num_experts).scatter(-1, experts, weights)
