# SPDX-License-Identifier: Apache-2.0
"""A faster kernel for rows of one token each on a CPU, as in generation.

It replaces code in `method/linear.py` and `method/routing.py`, and its results differ only by rounding. On a CPU,
reading a number from a tensor needs no synchronisation, so the few numbers of a token's routing are plain Python
numbers, and experts without weight are not computed: of E experts at most K are read from memory, and none for a
token that bypasses them all. The vectors are so short that starting an operation takes longer than the operation
itself; NumPy starts operations fastest.

Importing `slim_core.inference` installs the kernel for the engine and for everything else in the process that sets
rows, such as `model.generate(..., adapter_names=...)` of a `PeftModel`. Without that import, torch computes them.
"""

from __future__ import annotations

from contextvars import Context, copy_context
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..method import AS_TRAINED, Linear
from ..method.batch_rows import BatchRows
from ..method.context import ForwardContext
from ..peft_tools import RoutingTrace, TokenRouting
from .single_token_router import TokenGate, TokenInput, TokenRouter


# With more experts per token or more rows, torch's stacked products are faster.
MOST_EXPERTS = 4
MOST_ROWS = 8
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# The routing of every token in a plain LoRA.
UNROUTED = TokenRouting([1.0], 0.0, -1, [(0, 1.0)])
# The gate of one, which has no router to ask for it.
NO_GATE = TokenGate(0.0, None)


def install() -> None:
    """Let every SLIM layer of this process use this kernel for rows of one token."""
    Linear.rows_kernel = staticmethod(add_rows)


def add_rows(layer: Linear, x: Tensor, result: Tensor) -> Tensor | None:
    """What the rows of the running batch add to one Linear, where each row has one token: a `RowsKernel`.

    Args:
        layer: the Linear; its context has rows.
        x: (B, C_in) or (B, 1, C_in) its input.
        result: of its base layer.

    Returns:
        `result` with the rows' experts added, in place if it is float32; None if this kernel does not support the
        rows, the device, the dtype or the mode.
    """
    context = layer.context
    rows, sequences = context.rows, context.sequences
    if rows is None or torch.compiler.is_compiling() or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return None
    token_input = rows.kept.get(TokenInput)
    if token_input is None or not token_input.is_of(x, sequences):
        if not _is_one_token_each(layer, rows, x) or not _know_the_token(context, len(rows.adapter_names)):
            return None
        if token_input is None:
            rows.kept[Context] = _without_warnings()
        else:
            token_input.end()
        token_input = rows.kept[TokenInput] = TokenInput(x, sequences)
    if not result.is_contiguous() or result.dtype != x.dtype:
        return None
    if not (context.trace is None or isinstance(context.trace, RoutingTrace)):
        return None
    if layer not in rows.kept:
        rows.kept[layer] = _token_rows(layer, rows)
    token_rows = rows.kept[layer]
    if token_rows is None:
        return None
    added: Tensor = rows.kept[Context].run(token_rows.add, token_input, result, context.trace)
    return added


def _without_warnings() -> Context:
    """A context in which NumPy does not warn, since NaNs propagate as everywhere. `np.errstate` takes longer."""
    context = copy_context()
    context.run(np.seterr, all="ignore")
    return context


def _is_one_token_each(layer: Linear, batch: BatchRows, x: Tensor) -> bool:
    """Whether `x` has one token per row, on a device and in a form that `TokenRows` supports."""
    rows = len(batch.adapter_names)
    return (
        x.shape[0] == rows
        and x.numel() == rows * layer.in_features
        and x.is_cpu
        and x.dtype in DTYPES
        and x.is_contiguous()
    )


def _know_the_token(context: ForwardContext, rows: int) -> bool:
    """Whether it is known what the running forward reads, where an adapter has to know it."""
    sequences = context.sequences
    return not context.contextual or (sequences is not None and sequences.tokens == 1 and sequences.batch == rows)


def _token_rows(layer: Linear, batch: BatchRows) -> TokenRows | None:
    """The batch's rows at one Linear; None if one of them cannot be computed token by token."""
    token_rows = TokenRows(layer.module_name, layer.out_features)
    rows = [(row, name) for row, name in enumerate(batch.adapter_names) if name in layer.slim_A]
    if len(rows) > MOST_ROWS or not all(_is_plain(layer, name) for name in {name for _, name in rows}):
        return None
    for row, name in rows:
        config = layer.slim_config[name]
        router = _router(layer, batch, name) if config.routed else None
        scale = 1.0 if name in layer.folded else layer.scaling[name]
        experts = config.num_experts if config.routed else 1
        gate = _gate(layer, batch, row) if config.routed else NO_GATE
        token_rows.put(row, name, layer.slim_A[name], layer.slim_B[name], experts, scale, router, gate)
    return token_rows


def _is_plain(layer: Linear, name: str) -> bool:
    """Whether an adapter is a plain sum over experts of w s B A x, without dropout, masks, casts or gathers."""
    config = layer.slim_config[name]
    masked = config.merge != "none" and config.mask_rate > 0 and name not in layer.folded
    factors = (layer.slim_A[name], layer.slim_B[name])
    contiguous = config.num_experts == 1 or layer.slim_B[name].t().is_contiguous()
    return (
        not masked
        and contiguous
        and not layer.training
        and name not in layer.slim_column_index
        and (config.top_k <= MOST_EXPERTS or not config.routed)
        and all(factor.is_cpu and factor.dtype == torch.float32 for factor in factors)
    )


def _router(layer: Linear, batch: BatchRows, name: str) -> TokenRouter:
    """The adapter's router, one for all Linears that share it while the rows are set."""
    kept, router = batch.kept, layer.routers[name]
    if router not in kept:
        router.clusters.fold_earlier(learning=False)
        tables, _, weights = router.tables(training=False)
        kept[router] = TokenRouter(router.config, tables, weights, router.readers, router.key, name)
    return kept[router]


def _gate(layer: Linear, batch: BatchRows, row: int) -> TokenGate:
    """The gate of a row, one for all rows that ask the same of it and for all Linears that share its router."""
    router = layer.routers[batch.adapter_names[row]]
    setting = AS_TRAINED if batch.gates is None else batch.gates[row]
    key = (router, setting)
    if key not in batch.kept:
        strength, reference = router.gate_of(setting, router.tables(training=False)[1])
        batch.kept[key] = TokenGate(strength, None if reference is None else reference.reshape(-1).tolist())
    return batch.kept[key]


class _Row(NamedTuple):
    """One row with an adapter: its index in the batch, its router, and the factors of its experts.

    Factors are pairs of (r, C_in) and (r, C_out), each contiguous in memory.
    """

    row: int
    name: str
    router: TokenRouter | None
    factors: list[tuple[np.ndarray, np.ndarray]]
    scale: float
    gate: TokenGate


class TokenRows:
    """What the rows of one batch add to the output of one Linear."""

    def __init__(self, module: str, out_features: int) -> None:
        self._module, self._out = module, out_features
        self._rows: list[_Row] = []
        self._routers: list[TokenRouter] = []

    def put(
        self,
        row: int,
        name: str,
        a: Tensor,
        b: Tensor,
        num_experts: int,
        scale: float,
        router: TokenRouter | None,
        gate: TokenGate,
    ) -> None:
        """Add row `row` of adapter `name`, with the stacked float32 factors (E r, C_in) and (C_out, E r)."""
        first, second = (t.detach().numpy().reshape(num_experts, -1, t.shape[1]) for t in (a, b.t()))
        self._rows.append(_Row(row, name, router, list(zip(first, second, strict=True)), scale, gate))
        if router is not None and router not in self._routers:
            self._routers.append(router)

    def add(self, token_input: TokenInput, result: Tensor, trace: RoutingTrace | None) -> Tensor:
        """Add the experts of every row to `result`, (B, C_out) or (B, 1, C_out); in place, if it is float32.

        Args:
            token_input: of the Linear; half precision is computed in float32 and rounded once.
            result: of the base layer, in the dtype of the input.
            trace: where the routing is recorded; None if it is not.
        """
        for shared_router in self._routers:
            shared_router.begin(token_input)
        total, sums = result, None
        for row, name, router, factors, scale, gate in self._rows:
            routing = UNROUTED if router is None else router.of_row(row, token_input, gate)
            if trace is not None:
                trace.add_token(self._module, name, row, routing)
            if not routing.sent:
                continue
            if sums is None:
                total = result if result.dtype == torch.float32 else result.float()
                sums = total.numpy().reshape(-1, self._out)
            token, added = token_input.tokens[row], sums[row]
            for expert, weight in routing.sent:
                first, second = factors[expert]
                hidden = first.dot(token)
                hidden *= weight * scale
                added += hidden.dot(second)
        return total if total is result else total.to(result.dtype)
