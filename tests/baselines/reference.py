# SPDX-License-Identifier: Apache-2.0
"""The methods' formulas, token by token and expert by expert, in float64. Slow on purpose, and nothing is shared with
the package."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def softmax(logits: list[float]) -> list[float]:
    top = max(logits)
    exps = [math.exp(v - top) for v in logits]
    return [v / sum(exps) for v in exps]


def route(router: Tensor, x: Tensor) -> list[float]:
    return softmax([float(router[e].double() @ x.double()) for e in range(len(router))])


def best(p: list[float], k: int) -> dict[int, float]:
    kept = sorted(range(len(p)), key=lambda e: -p[e])[:k]
    return {e: p[e] / sum(p[i] for i in kept) for e in kept}


def lora(a: Tensor, b: Tensor, x: Tensor) -> Tensor:
    return b.double() @ (a.double() @ x.double())


def loramoe(w: Tensor, t: dict[str, Tensor], scale: float, x: Tensor) -> Tensor:
    """One token."""
    y = w.double() @ x.double()
    for e, gate in enumerate(route(t["router"], x)):
        y = y + scale * gate * lora(t["A"][e], t["B"][e], x)
    return y


def mola(w: Tensor, t: dict[str, Tensor], scale: float, x: Tensor, k: int) -> Tensor:
    y = w.double() @ x.double()
    for e, weight in best(route(t["router"], x), k).items():
        y = y + scale * weight * lora(t["A"][e], t["B"][e], x)
    return y


def disel(w: Tensor, t: dict[str, Tensor], scale: float, x: Tensor) -> Tensor:
    y = w.double() @ x.double()
    for rank in range(len(t["A"])):
        gate = 1 / (1 + math.exp(-float(t["gate"][rank].double() @ x.double() + t["gate_bias"][rank].double())))
        y = y + scale * gate * t["B"][:, rank].double() * (t["A"][rank].double() @ x.double())
    return y


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def mixlora(
    w: dict[str, Tensor],
    t: dict[str, Tensor],
    scale: float,
    x: Tensor,
    k: int,
    act: Callable[[Tensor], Tensor] = silu,
) -> Tensor:
    """One token through an MLP with weights "gate", "up" and "down"."""
    y = torch.zeros(len(x), dtype=torch.float64)
    x = x.double()
    for e, weight in best(route(t["router"], x), k).items():
        gate = w["gate"].double() @ x + scale * lora(t["gate_A"][e], t["gate_B"][e], x)
        up = w["up"].double() @ x + scale * lora(t["up_A"][e], t["up_B"][e], x)
        inner = act(gate) * up
        y = y + weight * (w["down"].double() @ inner + scale * lora(t["down_A"][e], t["down_B"][e], inner))
    return y


def localised_balance(gates: list[list[list[float]]], types: list[int] | None, offset: float) -> float:
    """LoRAMoE's loss of one Linear from the gates by sample, token and expert."""
    values = []
    for i, sample in enumerate(gates):
        experts = len(sample[0])
        for e in range(experts):
            used = sum(token[e] for token in sample)
            if types is not None:
                own = (e < experts // 2) == (types[i] == 1)
                used *= 1 + offset if own else 1 - offset
            values.append(used)
    mean = sum(values) / len(values)
    variance = sum((v - mean) ** 2 for v in values) / (len(values) - 1)
    return variance / (mean**2 + 1e-10)


def balance(chosen: list[list[int]], p: list[list[float]], experts: int, divide_by_k: bool) -> float:
    """E sum_e f_e P_e over tokens; f sums to K, or to 1."""
    tokens, k = len(chosen), len(chosen[0])
    total = 0.0
    for e in range(experts):
        f = sum(token.count(e) for token in chosen) / (tokens * (k if divide_by_k else 1))
        total += f * sum(token[e] for token in p) / tokens
    return experts * total
