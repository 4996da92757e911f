# SPDX-License-Identifier: Apache-2.0
"""SLIM written out slowly from its formulas, in float64, one token and one expert at a time.

Deliberately naive: loops, no stacking, no shared code with `slim_core`. A Linear's SLIM state is read from the layer
by its container names only.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def slim_delta(x: Tensor, state: dict, config, scaling: float) -> Tensor:
    """What the experts add to one Linear's output: sum_i (w_i / Z) s B'_i A'_i x, for tokens (T, C_in).

    Args:
        x: (T, C_in).
        state: tensors by name: A, B, router, router_bias, center, var, reference, columns, rows as they apply.
        config: the SlimConfig.
        scaling: s, with the survivors' scale in it.
    """
    x = x.double()
    out = torch.zeros(x.shape[0], state["B"].shape[0], dtype=torch.float64)
    for t in range(x.shape[0]):
        weights = token_weights(x[t], state, config)["weights"]
        for i in range(config.num_experts):
            out[t] += weights[i] * scaling * (expert_product(i, state, config) @ x[t])
    return out


def token_weights(x: Tensor, state: dict, config) -> dict:
    """Steps 1 to 5 for one token (C_in,)."""
    if config.num_experts + config.num_identity == 1:
        return {"weights": [1.0], "distance": 0.0, "cluster": -1}
    center, var = state["center"].double(), state["var"].double()
    cluster = min(range(len(center)), key=lambda n: ((x - center[n]) ** 2).sum().item())
    z = (x - center[cluster]) / torch.sqrt(var[cluster] + 1e-6)
    if config.distance == "max":
        distance = max(abs(v.item()) for v in z) - 1
    else:
        distance = math.sqrt(sum(v.item() ** 2 for v in z) / len(z)) - 1
    if "router_down" in state:
        hidden = state["router_down"].double() @ z
        z = z + state["router_up"].double() @ (hidden / (1 + torch.exp(-hidden)))
    logits = [(w.double() @ z + b.double()).item() for w, b in zip(state["router"], state["router_bias"], strict=True)]
    beyond = distance
    if config.yield_mode == "calibrated":
        beyond = max(0.0, distance - state["reference"].item())
    w = [v - config.yield_strength * beyond if i < config.num_experts else v for i, v in enumerate(logits)]
    top = max(w)
    soft = [math.exp(v - top) for v in w]
    total = sum(soft)
    soft = [v / total for v in soft]
    kept = sorted(range(len(w)), key=lambda i: w[i], reverse=True)[: config.top_k]
    z_sum = sum(soft[i] for i in kept)
    return {
        "weights": [soft[i] / z_sum if i in kept else 0.0 for i in range(len(w))],
        "distance": distance,
        "cluster": cluster,
    }


def expert_product(i: int, state: dict, config) -> Tensor:
    """B'_i A'_i, (C_out, C_in), with the dropped rows and columns at zero."""
    r = state["A"].shape[0] // config.num_experts
    product = state["B"][:, i * r : (i + 1) * r].double() @ state["A"][i * r : (i + 1) * r].double()
    if "columns" in state:
        product = product * state["columns"].double().unsqueeze(0) * state["rows"].double().unsqueeze(1)
    return product


def layer_state(layer, name: str) -> dict:
    """The tensors of one adapter on a SLIM layer."""
    containers = {
        "A": layer.slim_A,
        "B": layer.slim_B,
        "router": layer.slim_router,
        "router_bias": layer.slim_router_bias,
        "router_down": layer.slim_router_down,
        "router_up": layer.slim_router_up,
        "center": layer.slim_center,
        "var": layer.slim_var,
        "reference": layer.slim_reference,
        "columns": layer.slim_columns,
        "rows": layer.slim_rows,
    }
    return {key: c[name].detach().cpu() for key, c in containers.items() if name in c}


def slide(center: Tensor, var: Tensor, x: Tensor, momentum: float) -> tuple[Tensor, Tensor]:
    """Centres and variances after one step over tokens (T, C): mixtures of two distributions, cluster by cluster."""
    x, center, var = x.double(), center.double(), var.double()
    assigned = [min(range(len(center)), key=lambda n: ((t - center[n]) ** 2).sum().item()) for t in x]
    new_center, new_var = center.clone(), var.clone()
    eta = 1 - momentum
    for n in range(len(center)):
        mine = torch.stack([t for t, a in zip(x, assigned, strict=True) if a == n]) if n in assigned else None
        if mine is None:
            continue
        new_center[n] = (1 - eta) * center[n] + eta * mine.mean(0)
        # E[x^2] - E[x]^2 of the mixture of the old cluster and the new tokens.
        second = (1 - eta) * (var[n] + center[n] ** 2) + eta * (mine**2).mean(0)
        new_var[n] = second - new_center[n] ** 2
    return new_center, new_var
