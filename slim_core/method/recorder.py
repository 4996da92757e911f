# SPDX-License-Identifier: Apache-2.0
"""The interface of recorders of a forward's routing."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from .routing import Routing


class Recorder(Protocol):
    """Receives every routing while it is set in the `ForwardContext`; `slim_core.trace_routing` sets one."""

    def begin_forward(self, batch_size: int, mask: Tensor | None) -> None:
        """A forward of the model starts.

        Args:
            batch_size: B; 0 if unknown.
            mask: (B T,) bool, False for padding; None if every token counts.
        """

    def add(self, module: str, adapter: str, length: int, rows: slice | Tensor | None, routing: Routing) -> None:
        """One Linear has routed.

        Args:
            module: its name.
            adapter: the adapter that routed.
            length: first dimension of the Linear's whole input.
            rows: which of it these tokens are; None for all.
            routing: their routing.
        """

    def add_unrouted(
        self, module: str, adapter: str, length: int, rows: slice | Tensor | None, tokens: Tensor
    ) -> None:
        """The same of a plain LoRA, which sends all tokens (T, C) to its one expert."""

    def add_weights(
        self, module: str, adapter: str, length: int, rows: slice | Tensor | None, weights: Tensor
    ) -> None:
        """The same of an adapter with another router, from its (T, E) float32 weights of LoRA experts."""
