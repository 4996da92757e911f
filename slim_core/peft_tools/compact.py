# SPDX-License-Identifier: Apache-2.0
"""Adapters for inference only: masks of dynamic merging are sliced out of the factors or multiplied into them."""

from __future__ import annotations

from torch import nn

from ..method import SlimLayer


def slice_factors(model: nn.Module, adapter_name: str) -> None:
    """Permanently slice the rows and columns that dynamic merging drops at inference out of an adapter's factors.

    The output stays the same; memory and work of the factors fall by sqrt(1 - p) each. The adapter can then no longer
    be trained or saved. Without `merge="fast"` there is nothing to slice.

    Args:
        model: a model with SLIM adapters.
        adapter_name: the adapter to slice.

    Raises:
        ValueError: if the model has no such SLIM adapter.
        RuntimeError: if its masks were folded into its factors.
    """
    for layer in _layers_with(model, adapter_name):
        _slice(layer, adapter_name)


def fold_masks(model: nn.Module, adapter_name: str) -> None:
    """Permanently multiply the masks of dynamic merging and the scaling into an adapter's factors.

    Where the Linears are small and the tokens few, the operations that this saves in every forward are worth more
    than the memory that `slice_factors` saves; the output stays the same except for rounding. The adapter can then no
    longer be trained or saved. With `merge="dare"` there is nothing to fold, nor in factors that were sliced.

    Args:
        model: a model with SLIM adapters.
        adapter_name: the adapter.

    Raises:
        ValueError: if the model has no such SLIM adapter.
    """
    for layer in _layers_with(model, adapter_name):
        _fold(layer, adapter_name)


def _layers_with(model: nn.Module, adapter_name: str) -> list[SlimLayer]:
    layers: list[SlimLayer] = [m for m in model.modules() if isinstance(m, SlimLayer) and adapter_name in m.slim_A]
    if not layers:
        raise ValueError(f"The model has no SLIM adapter named {adapter_name!r}.")
    return layers


def _slice(layer: SlimLayer, name: str) -> None:
    if name not in layer.slim_columns or name in layer.slim_column_index:
        return
    layer.check_whole(name)
    columns = layer.slim_columns[name].nonzero().flatten()
    rows = layer.slim_rows[name].nonzero().flatten()
    a, b = layer.slim_A[name], layer.slim_B[name]
    layer.slim_A[name] = nn.Parameter(a.detach()[:, columns].contiguous(), requires_grad=False)
    layer.slim_B[name] = nn.Parameter(b.detach()[rows].contiguous(), requires_grad=False)
    layer.slim_column_index[name], layer.slim_row_index[name] = columns, rows


def _fold(layer: SlimLayer, name: str) -> None:
    """Fold masks and scaling into the factors, and store each expert's factors contiguously."""
    entrywise = layer.slim_config[name].merge == "dare"
    if entrywise or name in layer.slim_column_index or name in layer.folded:
        return
    a, b = layer.slim_A[name].detach(), layer.slim_B[name].detach() * layer.scaling[name]
    if name in layer.slim_columns:
        a = a * layer.slim_columns[name]
        b = b * layer.slim_rows[name].unsqueeze(1)
    layer.slim_A[name] = nn.Parameter(a, requires_grad=False)
    layer.slim_B[name] = nn.Parameter(b.t().contiguous().t(), requires_grad=False)
    layer.folded[name] = True
