# SPDX-License-Identifier: Apache-2.0
"""SLIM written out slowly from its formulas, in float64, one token and one expert at a time.

Deliberately naive: loops, no stacking, no shared code with `slim_core`. A Linear's SLIM state is read from the layer
by its container names only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


LEVELS = (0.5, 0.75, 0.9, 0.95, 0.99, 0.999)
UNSEEN = 2.0**49


class Below:
    """The excesses of the routers that ran before, for the tokens of one row."""

    def __init__(self) -> None:
        self._found: list[list[float]] = []
        self._before: dict[object, int] = {}

    def of(self, router: object, token: int) -> list[float]:
        """Those of the routers before `router`, which several Linears may share."""
        before = self._before.setdefault(router, len(self._found))
        return [excesses[token] for excesses in self._found[:before]]

    def note(self, router: object, excesses: list[float]) -> None:
        """What a router has found; the second Linear that shares it finds the same."""
        if self._before.setdefault(router, len(self._found)) == len(self._found):
            self._found.append(excesses)


def slim_delta(
    x: Tensor,
    state: dict,
    config,
    scaling: float,
    contexts: tuple[Tensor, Tensor] | None = None,
    below: Below | None = None,
    router: object = None,
) -> Tensor:
    """What the experts add to one Linear's output: sum_i (w_i / Z) s B'_i A'_i x, for tokens (T, C_in).

    Args:
        x: (T, C_in).
        state: tensors by name: A, B, router, router_bias, center, var, reference, columns, rows as they apply.
        config: the SlimConfig.
        scaling: s, with the survivors' scale in it.
        contexts: mean (T, C_in) and count (T,) of each token's context; None if the tokens are one sequence.
        below: what the routers of the Linears before this one found; None if this is the first.
        router: whose router it is.
    """
    below = Below() if below is None else below
    x = x.double()
    if contexts is None:
        contexts = sequence_contexts(x)
    out = torch.zeros(x.shape[0], state["B"].shape[0], dtype=torch.float64)
    excesses = []
    for t in range(x.shape[0]):
        routed = token_weights(x[t], state, config, contexts[0][t], int(contexts[1][t]), below.of(router, t))
        weights = routed["weights"]
        excesses.append(routed["excess"])
        for i in range(config.num_experts):
            out[t] += weights[i] * scaling * (expert_product(i, state, config) @ x[t])
    below.note(router, excesses)
    return out


def token_weights(
    x: Tensor, state: dict, config, context: Tensor | None = None, count: int = 1, below: Sequence[float] = ()
) -> dict:
    """Steps 1 to 5 for one token (C_in,), whose context has the mean `context` (C_in,) over `count` tokens.

    Without a context the token is its own, as the first of a sequence is. `below` are the excesses of the routers
    before this one.
    """
    if config.num_experts + config.num_identity == 1:
        return {"weights": [1.0], "distance": 0.0, "cluster": -1, "gate": 1.0, "reference": 0.0, "excess": 0.0}
    contextual = config.distance_scope == "context"
    placed = context if contextual and context is not None else x
    center, var = state["center"].double(), spread_of(state, config)
    cluster = min(range(len(center)), key=lambda n: ((placed - center[n]) ** 2).sum().item())
    z = (placed - center[cluster]) / torch.sqrt(var[cluster] + 1e-6)
    if config.distance == "max":
        distance = max(abs(v.item()) for v in z) - 1
    else:
        distance = math.sqrt(sum(v.item() ** 2 for v in z) / len(z)) - 1
    if contextual:
        z = (x - state["token_mean"][0].double()) / torch.sqrt(state["token_var"][0].double() + 1e-6)
    logits = router_logits(z, state)
    known = 0.0 if config.yield_mode == "paper" else in_domain(state["reference"], config.yield_quantile, count)
    excess = beyond = distance if config.yield_mode == "paper" else max(0.0, distance - known)
    if contextual and config.carry_up and config.yield_mode != "paper":
        beyond = sum([*below, excess]) / (len(below) + 1)
    w, gate = logits, 1.0
    if config.yield_mode == "gate":
        gate = min(1.0, max(0.0, 1 - config.yield_strength * beyond))
        if contextual and count <= config.context_warmup:
            gate = 0.0
    else:
        w = [v - config.yield_strength * beyond if i < config.num_experts else v for i, v in enumerate(logits)]
    weights = kept_weights(w, config.top_k)
    for i in range(len(weights)):
        weights[i] *= gate
        if i >= config.num_experts:
            weights[i] += (1 - gate) / config.num_identity
    return {
        "weights": weights,
        "distance": distance,
        "cluster": cluster,
        "gate": gate,
        "reference": known,
        "excess": excess,
    }


def spread_of(state: dict, config) -> Tensor:
    """(N, C_in) variances by which contexts are normalised."""
    var = state["var"].double()
    if config.distance_scope == "context":
        for cluster in var:
            for channel, tokens in enumerate(state["token_var"][0].double()):
                cluster[channel] = max(cluster[channel].item(), config.variance_floor * tokens.item())
    return var


def router_logits(z: Tensor, state: dict) -> list[float]:
    if "router_down" in state:
        hidden = state["router_down"].double() @ z
        z = z + state["router_up"].double() @ (hidden / (1 + torch.exp(-hidden)))
    return [(w.double() @ z + b.double()).item() for w, b in zip(state["router"], state["router_bias"], strict=True)]


def kept_weights(w: list[float], top_k: int) -> list[float]:
    """Softmax, the `top_k` largest, divided by their sum."""
    top = max(w)
    soft = [math.exp(v - top) for v in w]
    total = sum(soft)
    soft = [v / total for v in soft]
    kept = sorted(range(len(w)), key=lambda i: w[i], reverse=True)[:top_k]
    z_sum = sum(soft[i] for i in kept)
    return [soft[i] / z_sum if i in kept else 0.0 for i in range(len(w))]


# -- contexts ----------------------------------------------------------------------------------------------------


def sequence_contexts(
    x: Tensor,
    ids: list[int] | None = None,
    valid: list[bool] | None = None,
    positions: list[int] | None = None,
    opening: tuple[int, ...] = (),
) -> tuple[Tensor, Tensor]:
    """Mean (T, C) and count (T,) of each token's context: the tokens so far of one sequence, or of one turn.

    Args:
        x: (T, C) a row's tokens.
        ids: their ids, in which turns open.
        valid: which are no padding; None if all are.
        positions: their positions, which restart where a packed sequence begins.
        opening: the ids that open a turn; the last of them is the first token of the turn's context.
    """
    total, count, means, counts = torch.zeros(x.shape[1], dtype=torch.float64), 0, [], []
    for t in range(len(x)):
        restarts = positions is not None and (positions[t] == 0 or (t > 0 and positions[t] < positions[t - 1]))
        opens = bool(opening) and tuple(ids[max(0, t + 1 - len(opening)) : t + 1]) == tuple(opening)
        if restarts or opens:
            total, count = torch.zeros_like(total), 0
        if valid is None or valid[t]:
            total, count = total + x[t].double(), count + 1
        means.append(total / max(count, 1))
        counts.append(count)
    return torch.stack(means), torch.tensor(counts)


def batch_contexts(
    x: Tensor,
    ids: Tensor | None = None,
    mask: Tensor | None = None,
    positions: Tensor | None = None,
    opening: tuple[int, ...] = (),
) -> tuple[Tensor, Tensor]:
    """The same for (B, T, C): mean (B, T, C) and count (B, T)."""
    rows = []
    for b in range(len(x)):
        of_row = [None if part is None else part[b].tolist() for part in (ids, mask, positions)]
        rows.append(sequence_contexts(x[b], of_row[0], of_row[1], of_row[2], opening))
    return torch.stack([row[0] for row in rows]), torch.stack([row[1] for row in rows])


def alone(x: Tensor) -> tuple[Tensor, Tensor]:
    """Contexts of tokens (T, C) that are a sequence each, as a layer that is called by itself takes its rows."""
    return x.double(), torch.ones(len(x))


def bucket_of(count: int) -> int:
    """Which power of two the length of a context is in: 1, 2-3, 4-7, ..., and from 2^15 on."""
    bucket = 0
    while 2 ** (bucket + 1) <= count and bucket < 15:
        bucket += 1
    return bucket


def in_domain(reference: Tensor, quantile: float, count: int) -> float:
    """The distance up to which a context of `count` tokens is in domain."""
    if reference.dim() == 0:
        return reference.item()
    bucket = bucket_of(count) if reference.shape[1] > 1 else 0
    while True:
        known = between_levels([v.item() for v in reference[:, bucket].double()], quantile)
        if known < UNSEEN / 2 or bucket == 0:
            return known
        bucket -= 1


def between_levels(values: list[float], quantile: float) -> float:
    """The value at a quantile from those at `LEVELS`."""
    if quantile <= LEVELS[0]:
        return values[0]
    for i in range(1, len(LEVELS)):
        if quantile <= LEVELS[i]:
            share = (quantile - LEVELS[i - 1]) / (LEVELS[i] - LEVELS[i - 1])
            return values[i - 1] * (1 - share) + values[i] * share
    return values[-1]


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
        "count": layer.slim_count,
        "token_mean": layer.slim_token_mean,
        "token_var": layer.slim_token_var,
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


def slide_references(reference: Tensor, distance: Tensor, count: Tensor, momentum: float) -> Tensor:
    """The running quantiles (levels, buckets) after a step over distances (T,) of contexts of `count` (T,) tokens."""
    new = reference.double().clone()
    buckets = torch.tensor([bucket_of(int(c)) if reference.shape[1] > 1 else 0 for c in count])
    for bucket in range(reference.shape[1]):
        mine = distance.double()[buckets == bucket]
        for level in range(len(LEVELS)) if len(mine) else ():
            latest = torch.quantile(mine, LEVELS[level])
            first = reference[level, bucket] >= UNSEEN
            new[level, bucket] = latest if first else momentum * new[level, bucket] + (1 - momentum) * latest
    return new
