# SPDX-License-Identifier: Apache-2.0
"""A key-value cache with spare room, so that new tokens are written in place.

transformers' `DynamicLayer` copies all that it holds for every token: with three rows and a few hundred tokens a small
model spends more time on that than on its attention.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

from ..method import RowsOf, put_together


# Number of tokens by which the buffer grows.
ROOM = 128
PIECE = 512
# The same while others wait for their next token.
SHARED_PIECE = 128


class GrowingLayer(DynamicLayer):
    """A `DynamicLayer` that reallocates only once every `ROOM` tokens."""

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        self._keys, self._values = _Growing(), _Growing()

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Append (B, heads, T, width) keys and values; returns all of them, (B, heads, S + T, width)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None  # it is initialised
        length = self.get_seq_length()
        self.keys = self._keys.append(self.keys, key_states, length)
        self.values = self._values.append(self.values, value_states, length)
        return self.keys, self.values

    def take(self, parts: Sequence[tuple[RowsOf, GrowingLayer]], rows: int, length: int) -> None:
        """Copy rows from other layers. Padding columns are added or cut off at the front.

        Args:
            parts: layers, with the rows to copy and their new indices.
            rows: number of rows of this layer.
            length: number of its columns.
        """
        keys = [(part, layer.keys) for part, layer in parts if layer.keys is not None]
        values = [(part, layer.values) for part, layer in parts if layer.values is not None]
        self.lazy_initialization(keys[0][1], values[0][1])
        self.keys, self.values = self._keys.take(keys, rows, length), self._values.take(values, rows, length)

    def cut(self, length: int) -> None:
        """Keep only the first `length` columns."""
        if self.keys is not None and self.values is not None and self.get_seq_length() > length:
            self.keys, self.values = self.keys[:, :, :length], self.values[:, :, :length]

    def row(self, row: int, begin: int, end: int) -> GrowingLayer:
        """A layer with a copy of some columns of one row, without spare room."""
        return self._of(*(tensor[row : row + 1, :, begin:end].clone() for tensor in self._parts()))

    def upto(self, length: int) -> GrowingLayer:
        """A layer with the first columns of this one, which share its memory."""
        return self._of(*(tensor[:, :, :length] for tensor in self._parts()))

    def move(self, row: int, begin: int, end: int, by: int) -> None:
        """Move columns of a row to the right, in place."""
        for tensor in self._parts():
            tensor[row, :, begin + by : end + by] = tensor[row, :, begin:end].clone()

    def _parts(self) -> tuple[Tensor, Tensor]:
        assert self.keys is not None and self.values is not None  # it is initialised
        return self.keys, self.values

    @staticmethod
    def _of(keys: Tensor, values: Tensor) -> GrowingLayer:
        layer = GrowingLayer()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        return layer


class _Growing:
    """A tensor that grows along its second-to-last dimension."""

    def __init__(self) -> None:
        self._buffer: Tensor | None = None
        self._shown: Tensor | None = None

    def append(self, held: Tensor, new: Tensor, length: int) -> Tensor:
        """`held`, of `length` entries, followed by `new`."""
        end = length + new.shape[-2]
        # Selecting rows or cutting columns replaces the tensor by one without spare room.
        if self._buffer is None or self._shown is not held or self._buffer.shape[-2] < end:
            self._buffer = new.new_empty(*new.shape[:-2], -(-end // ROOM) * ROOM, new.shape[-1])
            if length:
                self._buffer.narrow(-2, 0, length).copy_(held)
        self._buffer.narrow(-2, length, new.shape[-2]).copy_(new)
        self._shown = self._buffer.narrow(-2, 0, end)
        return self._shown

    def take(self, parts: Sequence[tuple[RowsOf, Tensor]], rows: int, length: int) -> Tensor:
        """As `GrowingLayer.take`, with spare room."""
        first = parts[0][1]
        room = -(-(length + 1) // ROOM) * ROOM
        # Zeros where padding will be: it is masked, but a NaN would be in every sum.
        self._buffer = first.new_zeros(rows, first.shape[1], room, first.shape[-1])
        for part, tensor in parts:
            columns = min(length, tensor.shape[-2])
            source = tensor.narrow(-2, tensor.shape[-2] - columns, columns).index_select(
                0, part.rows.to(tensor.device)
            )
            self._buffer.narrow(-2, length - columns, columns).index_copy_(0, part.places.to(tensor.device), source)
        self._shown = self._buffer.narrow(-2, 0, length)
        return self._shown


def longest_piece(config: PreTrainedConfig, shared: bool = False) -> int:
    """How many tokens of a prompt one forward reads. A long prompt takes minutes and can be stopped between pieces.

    Pieces are shorter while the model is `shared`, since other answers continue between two of them. A prompt is read
    in one piece if its length changes how positions are encoded: keys of earlier pieces would have the positions of a
    shorter text.
    """
    if positions_vary(config):
        return sys.maxsize
    return min(PIECE, SHARED_PIECE) if shared else PIECE


def positions_vary(config: PreTrainedConfig) -> bool:
    """Whether the longest text of a batch changes how positions are encoded in all of its texts."""
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    kinds = [rope, *(kind for kind in rope.values() if isinstance(kind, dict))]
    return any(kind.get("rope_type") in ("dynamic", "longrope") for kind in kinds)


def growing_cache(config: PreTrainedConfig) -> DynamicCache:
    """A cache for a model. Layers with a sliding window, or with a recurrent state, are those of transformers."""
    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def is_growing(cache: DynamicCache) -> bool:
    """Whether all layers store one column per token, so that rows of several caches can be joined."""
    return all(isinstance(layer, GrowingLayer) for layer in cache.layers)


def joined_cache(config: PreTrainedConfig, parts: Sequence[RowsOf], rows: int, length: int) -> DynamicCache:
    """A growing cache with copies of rows of other caches.

    Args:
        config: of the model.
        parts: caches, with the rows to copy and their new indices.
        rows: number of rows of the new cache.
        length: number of its columns; padding columns are added or cut off at the front.
    """
    joined = growing_cache(config)
    for index, layer in enumerate(joined.layers):
        assert isinstance(layer, GrowingLayer)  # the caller has checked `is_growing`
        layer.take([(part, part.cache.layers[index]) for part in parts], rows, length)
    put_together(joined, parts, rows, length)
    return joined


def layerwise(cache: DynamicCache, change: Callable[[GrowingLayer], GrowingLayer]) -> DynamicCache:
    """A growing cache whose layers are made from those of another one."""
    changed = DynamicCache()
    changed.layers = [change(layer) for layer in cache.layers if isinstance(layer, GrowingLayer)]
    return changed


def bytes_of(cache: DynamicCache) -> int:
    """Memory of the keys and values in a cache, without spare room."""
    tensors = [getattr(layer, name, None) for layer in cache.layers for name in ("keys", "values")]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if isinstance(tensor, Tensor))
