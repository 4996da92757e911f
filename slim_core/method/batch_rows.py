# SPDX-License-Identifier: Apache-2.0
"""The rows of one batch as different adapters."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from .gate_setting import AS_TRAINED, GateSetting


BASE_ROW = "__base__"


class BatchRows:
    """The adapter of each row of a batch. It is created when the rows are set and dropped afterwards.

    Args:
        adapter_names: the adapter of each row; `"__base__"` is the base model.
        gates: what each row asks of its adapter's gate; None if none asks for anything.

    Attributes:
        adapted: whether any row has an adapter.
        gates: the same; None also if all are `AS_TRAINED`.
        kept: what a `RowsKernel` has prepared for these rows, by layer or router.

    Raises:
        ValueError: if there is not one gate setting for each row.
    """

    def __init__(self, adapter_names: Sequence[str], gates: Sequence[GateSetting] | None = None) -> None:
        if gates is not None and len(gates) != len(adapter_names):
            raise ValueError(f"There are {len(gates)} gate settings for {len(adapter_names)} rows.")
        self.adapter_names = list(adapter_names)
        self.adapted = any(name != BASE_ROW for name in adapter_names)
        self.gates = None if gates is None or _as_trained(gates) else tuple(gates)
        self.kept: dict[Hashable, Any] = {}
        self._of_length: dict[tuple[int, torch.device], dict[str, slice | Tensor]] = {}

    def by_adapter(self, length: int, device: torch.device) -> dict[str, slice | Tensor]:
        """Which rows of a layer's input belong to which adapter, except the base's.

        Neighbouring rows are a slice, so that nothing is copied.

        Args:
            length: size of the input's first dimension: the batch, or a multiple of it where generation repeats rows
                (beams, several returned sequences) or a model flattens batch and tokens.
            device: where index tensors go.

        Raises:
            ValueError: if `length` is not a multiple of the number of rows.
        """
        key = (length, device)
        if key not in self._of_length:
            self._of_length[key] = self._by_adapter(length, device)
        return self._of_length[key]

    def _by_adapter(self, length: int, device: torch.device) -> dict[str, slice | Tensor]:
        names = self.adapter_names
        repeat, remainder = divmod(length, len(names))
        if remainder:
            raise ValueError(
                f"`adapter_names` has {len(names)} names, but a layer got {length} rows, which is not a multiple of "
                "it: this layer cannot tell which adapter each row belongs to."
            )
        rows_by_adapter: dict[str, slice | Tensor] = {}
        for name in dict.fromkeys(n for n in names if n != BASE_ROW):
            index = [i * repeat + j for i, n in enumerate(names) if n == name for j in range(repeat)]
            if index[-1] - index[0] + 1 == len(index):
                rows_by_adapter[name] = slice(index[0], index[-1] + 1)
            else:
                rows_by_adapter[name] = torch.tensor(index, device=device)
        return rows_by_adapter

    def gates_of(self, adapter_name: str) -> list[GateSetting] | None:
        """What each row of an adapter asks of its gate; None if none of them asks for anything."""
        if self.gates is None:
            return None
        rows = zip(self.adapter_names, self.gates, strict=True)
        gates = [gate for name, gate in rows if name == adapter_name]
        return None if _as_trained(gates) else gates


def _as_trained(gates: Sequence[GateSetting]) -> bool:
    return all(gate == AS_TRAINED for gate in gates)


def check_names(adapter_names: list[str], known: Collection[str], training: bool) -> None:
    """Check that rows may have these names.

    Raises:
        TypeError: if it is not a list.
        ValueError: if the model is in training mode, or a name is not among the `known` ones.
    """
    if not isinstance(adapter_names, (list, tuple)):
        raise TypeError(f"`adapter_names` must be a list of names, one per row, not {adapter_names!r}.")
    if training:
        raise ValueError("Cannot pass `adapter_names` when the model is in training mode: call `model.eval()` first.")
    unknown = sorted(set(adapter_names) - set(known) - {BASE_ROW})
    if unknown:
        raise ValueError(
            f"Trying to infer with non-existing adapter(s): {', '.join(unknown)}; `adapter_names` may hold "
            f"{', '.join(map(repr, known))} and {BASE_ROW!r}."
        )
