# SPDX-License-Identifier: Apache-2.0
"""The routing trace: for chosen rows, the experts' weights for each token in each Linear. Off by default, free when
off.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from ..method import Routing
from .token_routing import TokenRouting


def identity_share(weights: Tensor, num_experts: int) -> Tensor:
    """(...) float32 share that goes past the LoRA experts, from (..., E + I) weights, of which E are LoRA experts'."""
    # Without identity experts a gate leaves weights that do not sum to 1.
    return (1 - weights[..., :num_experts].sum(-1)).clamp(min=0)


class RowRouting(NamedTuple):
    """Routing of one row over all its tokens, without padding. L target Linears, T tokens.

    Attributes:
        modules: names of the L Linears, in the order in which they ran.
        num_experts: E; the experts from E on are identity experts.
        weights: (L, T, E + I) float32 weight of each expert.
        distance: (L, T) float32 distance d of the token's context, or of the token, from its cluster; 0 without
            clusters, as of a plain LoRA.
        cluster: (L, T) int64 nearest cluster; -1 without clusters.
        gate: (L, T) float32 g by which the LoRA experts' weights were multiplied; 1 without a gate.
        reference: (L, T) float32 distance up to which nothing yields; 0 without clusters.
    """

    modules: list[str]
    num_experts: int
    weights: Tensor
    distance: Tensor
    cluster: Tensor
    gate: Tensor
    reference: Tensor

    @property
    def identity(self) -> Tensor:
        """(L, T) float32 share of each token that went past the LoRA experts."""
        return identity_share(self.weights, self.num_experts)


class _Piece(NamedTuple):
    """What one Linear did in one forward. Tensors are (traced rows, tokens, ...)."""

    forward: int
    weights: Tensor
    distance: Tensor
    cluster: Tensor
    gate: Tensor
    reference: Tensor


class _Token(NamedTuple):
    """What one Linear did with a single token."""

    forward: int
    weights: list[float]
    distance: float
    cluster: int
    gate: float
    reference: float


class RoutingTrace:
    """Records the routing of chosen rows while `trace_routing` is open. Tensors stay on their device until read.

    Args:
        rows: the rows of the batch to record; None for all.
        num_experts: E by adapter name.
    """

    def __init__(self, rows: Sequence[int] | None, num_experts: dict[str, int]) -> None:
        self._wanted = None if rows is None else set(rows)
        self._num_experts = num_experts
        self._batch_size = 0
        self._valid: list[Tensor | None] = []
        self._pieces: dict[int, dict[str, list[tuple[_Piece, int] | _Token]]] = {}
        self._adapters: dict[int, str] = {}

    def clear(self) -> None:
        """Forget what was recorded so far."""
        self._valid, self._pieces, self._adapters = [], {}, {}

    @property
    def forwards(self) -> int:
        """How many forwards were recorded since it was cleared."""
        return len(self._valid)

    def forget_since(self, forwards: int) -> None:
        """Forget all forwards but the first ones: one of them has failed.

        Args:
            forwards: how many are kept.
        """
        for row, of_row in list(self._pieces.items()):
            for module, pieces in list(of_row.items()):
                of_row[module] = [p for p in pieces if (p if isinstance(p, _Token) else p[0]).forward < forwards]
                if not of_row[module]:
                    del of_row[module]
            if not of_row:
                del self._pieces[row], self._adapters[row]
        del self._valid[forwards:]

    def moved(self, places: Mapping[int, int], rows: Sequence[int]) -> RoutingTrace:
        """A trace that continues some rows of this one in a batch of other rows.

        What was recorded so far must be single tokens, none of them padding.

        Args:
            places: where the rows stand now, by where they stood.
            rows: the rows to record.
        """
        trace = RoutingTrace(rows, self._num_experts)
        trace._pieces = {places[row]: pieces for row, pieces in self._pieces.items() if row in places}
        trace._adapters = {places[row]: name for row, name in self._adapters.items() if row in places}
        trace._valid = [None for _ in self._valid] if trace._pieces else []
        return trace

    def take(self, row: int) -> RowRouting:
        """`row`, and forget it."""
        routing = self.row(row)
        del self._pieces[row], self._adapters[row]
        if not self._pieces:
            self.clear()
        return routing

    def begin_forward(self, batch_size: int, mask: Tensor | None) -> None:
        """A forward of the model starts, with this many rows and this flattened padding mask."""
        self._batch_size = batch_size
        self._valid.append(None if mask is None else mask.view(batch_size, -1))

    def add(self, module: str, adapter: str, length: int, rows: slice | Tensor | None, routing: Routing) -> None:
        """Record what one Linear did.

        Args:
            module: its name.
            adapter: the adapter that routed.
            length: first dimension of the Linear's whole input.
            rows: which of it these tokens are; None for all.
            routing: their routing.
        """
        batch_size = self._batch_size or length
        repeat = length // batch_size
        index: Sequence[int]
        if rows is None:
            index = range(batch_size)
        else:
            every = range(length)[rows] if isinstance(rows, slice) else rows.tolist()
            index = [i // repeat for i in every][::repeat]
        weights = routing.weights.detach().unflatten(0, (len(index), -1))
        distance = routing.distance.detach().unflatten(0, (len(index), -1))
        cluster = routing.cluster.unflatten(0, (len(index), -1))
        gate = routing.gate.detach().unflatten(0, (len(index), -1))
        reference = routing.reference.unflatten(0, (len(index), -1))
        piece = _Piece(len(self._valid) - 1, weights, distance, cluster, gate, reference)
        for position, row in enumerate(index):
            if self._wanted is None or row in self._wanted:
                self._append(row, module, adapter, (piece, position))

    def add_token(self, module: str, adapter: str, row: int, routing: TokenRouting) -> None:
        """Record what one Linear did with the only token of a row. Numbers become tensors when they are read."""
        if self._wanted is None or row in self._wanted:
            weights, distance, cluster, _, gate, reference = routing
            self._append(
                row, module, adapter, _Token(len(self._valid) - 1, weights, distance, cluster, gate, reference)
            )

    def _append(self, row: int, module: str, adapter: str, piece: tuple[_Piece, int] | _Token) -> None:
        if self._adapters.setdefault(row, adapter) != adapter:
            raise ValueError(
                f"Row {row} was routed by {self._adapters[row]!r} and by {adapter!r}: a trace holds one adapter for "
                "each row."
            )
        self._pieces.setdefault(row, {}).setdefault(module, []).append(piece)

    def add_unrouted(
        self, module: str, adapter: str, length: int, rows: slice | Tensor | None, tokens: Tensor
    ) -> None:
        """Record a Linear with a single LoRA expert: weight 1 on it, nothing past it."""
        self.add_weights(module, adapter, length, rows, torch.ones(len(tokens), 1, device=tokens.device))

    def add_weights(
        self, module: str, adapter: str, length: int, rows: slice | Tensor | None, weights: Tensor
    ) -> None:
        """Record (T, E) weights of LoRA experts, without identity experts, clusters or a gate."""
        none = torch.zeros_like(weights[:, 0])
        cluster = torch.full((len(weights),), -1, device=weights.device)
        self.add(
            module, adapter, length, rows, Routing(weights, weights, none, cluster, weights, none + 1, none, none)
        )

    @property
    def rows(self) -> list[int]:
        """The rows that have a routing. Rows of the base model have none."""
        return sorted(self._pieces)

    def row(self, row: int) -> RowRouting:
        """The routing of one row over all forwards, on the CPU.

        A Linear that saw fewer tokens than the others, as the output head does in generation, is left out.

        Raises:
            KeyError: if nothing was recorded for the row.
        """
        if row not in self._pieces:
            raise KeyError(f"No routing was recorded for row {row}; recorded rows: {self.rows or 'none'}.")
        joined = {module: self._join(row, pieces) for module, pieces in self._pieces[row].items()}
        tokens = max(len(parts[0]) for parts in joined.values())
        joined = {module: parts for module, parts in joined.items() if len(parts[0]) == tokens}
        stacked = (torch.stack(parts) for parts in zip(*joined.values(), strict=True))
        return RowRouting(list(joined), self._num_experts[self._adapters[row]], *stacked)

    def _join(self, row: int, pieces: list[tuple[_Piece, int] | _Token]) -> tuple[Tensor, ...]:
        """Weights, distances, clusters, gates and references of one Linear, each (tokens, ...), on the CPU."""
        parts: tuple[list[Tensor], ...] = ([], [], [], [], [])
        for _, run in groupby(pieces, lambda piece: isinstance(piece, _Token)):
            alone: list[_Token] = []
            several: list[tuple[_Piece, int]] = []
            for piece in run:
                if isinstance(piece, _Token):
                    alone.append(piece)
                else:
                    several.append(piece)
            read = self._of_tokens(row, alone) if alone else self._of_pieces(row, several)
            for tensors, fields in zip(parts, read, strict=True):
                tensors.extend(fields)
        # One transfer for all: on a GPU each waits for what runs there.
        return tuple(torch.cat(tensors).cpu() for tensors in parts)

    def _of_pieces(self, row: int, pieces: list[tuple[_Piece, int]]) -> Iterator[list[Tensor]]:
        for field in ("weights", "distance", "cluster", "gate", "reference"):
            per_piece = []
            for piece, position in pieces:
                values = getattr(piece, field)[position]
                valid = self._mask(piece.forward)
                if valid is not None and valid.shape[1] == len(values):
                    values = values[valid[row].to(values.device)]
                per_piece.append(values)
            yield per_piece

    def _of_tokens(self, row: int, tokens: list[_Token]) -> Iterator[list[Tensor]]:
        counted = [token for token in tokens if self._counts(token.forward, row)]
        yield [torch.tensor([token.weights for token in counted]).view(len(counted), len(tokens[0].weights))]
        yield [torch.tensor([token.distance for token in counted])]
        yield [torch.tensor([token.cluster for token in counted], dtype=torch.int64)]
        yield [torch.tensor([token.gate for token in counted])]
        yield [torch.tensor([token.reference for token in counted])]

    def _counts(self, forward: int, row: int) -> bool:
        """Whether the only token of a row in a forward is not padding."""
        valid = self._mask(forward)
        return valid is None or valid.shape[1] != 1 or bool(valid[row])

    def _mask(self, forward: int) -> Tensor | None:
        """(batch, tokens) bool of a forward, False for padding; None if every token counts."""
        return self._valid[forward] if forward >= 0 else None
