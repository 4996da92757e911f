# SPDX-License-Identifier: Apache-2.0
"""Dynamic merging (Section 3.4): drop part of each product B_i A_i, exactly or fast, and the L1 loss for it."""

from __future__ import annotations

import math
import zlib

import torch
from torch import Tensor


def fast_masks(
    in_features: int,
    out_features: int,
    rate: float,
    *,
    device: torch.device | str = "cpu",
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Which columns of A and which rows of B survive.

    Each side keeps a share sqrt(1 - p), so that an entry of the product survives with probability 1 - p. The masks are
    those of the stacked factors: the experts of one Linear lose the same input and output channels. That is what lets
    the survivors be sliced out of one stack and costs no copy of the factors while training.

    Args:
        in_features: C_in.
        out_features: C_out.
        rate: p.
        device: where the masks go.
        generator: source of randomness on `device`; None for torch's own.

    Returns:
        (C_in,) and (C_out,) bool, True for what survives.
    """
    keep = math.sqrt(1 - rate)
    columns = torch.rand(in_features, device=device, generator=generator) < keep
    rows = torch.rand(out_features, device=device, generator=generator) < keep
    return columns, rows


def dare_mask(
    out_features: int,
    in_features: int,
    rate: float,
    *,
    device: torch.device | str = "cpu",
    generator: torch.Generator | None = None,
) -> Tensor:
    """(C_out, C_in) bool, each entry True with probability 1 - p."""
    return torch.rand(out_features, in_features, device=device, generator=generator) >= rate


def survivor_scale(rate: float, rescale: bool) -> float:
    """DARE's 1 / (1 - p) for what survives, or 1."""
    return 1 / (1 - rate) if rescale else 1.0


def module_seed(seed: int, module_name: str) -> int:
    """Seed of one module's inference masks, the same on every machine."""
    return zlib.crc32(f"{seed}:{module_name}".encode())


def l1_penalty(a: Tensor, b: Tensor, num_experts: int) -> Tensor:
    """One layer's share of the L1 loss: sum over experts of |B_i|_1 / (r C_out) + |A_i|_1 / (r C_in).

    Args:
        a: (E r, C_in) stacked A.
        b: (C_out, E r) stacked B.
        num_experts: E.

    Returns:
        () float32.
    """
    # Every expert has the same size, so the sum of the experts' means is E times the mean of the stack.
    return num_experts * (a.float().abs().mean() + b.float().abs().mean())
