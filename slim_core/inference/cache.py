# SPDX-License-Identifier: Apache-2.0
"""A key-value cache with spare room, so that new tokens are written in place.

transformers' `DynamicLayer` copies all that it holds for every token: with three rows and a few hundred tokens a small
model spends more time on that than on its attention.
"""

from __future__ import annotations

import sys

from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer


# Number of tokens by which the buffer grows.
ROOM = 128
PIECE = 512


class GrowingLayer(DynamicLayer):
    """A `DynamicLayer` that reallocates only once every `ROOM` tokens."""

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        self._keys, self._values = _Growing(), _Growing()

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Append (B, heads, T, width) keys and values; returns all that are held, (B, heads, S + T, width)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None  # it is initialised
        held = self.get_seq_length()
        self.keys = self._keys.append(self.keys, key_states, held)
        self.values = self._values.append(self.values, value_states, held)
        return self.keys, self.values


class _Growing:
    """One tensor that grows in its last dimension but one."""

    def __init__(self) -> None:
        self._buffer: Tensor | None = None
        self._shown: Tensor | None = None

    def append(self, held: Tensor, new: Tensor, length: int) -> Tensor:
        """`held`, which has `length` entries, and behind it `new`."""
        end = length + new.shape[-2]
        # Selecting rows or cutting columns replaces the tensor by one without spare room.
        if self._buffer is None or self._shown is not held or self._buffer.shape[-2] < end:
            self._buffer = new.new_empty(*new.shape[:-2], -(-end // ROOM) * ROOM, new.shape[-1])
            if length:
                self._buffer.narrow(-2, 0, length).copy_(held)
        self._buffer.narrow(-2, length, new.shape[-2]).copy_(new)
        self._shown = self._buffer.narrow(-2, 0, end)
        return self._shown


def longest_piece(config: PreTrainedConfig) -> int:
    """How many tokens of a prompt one forward reads: a long prompt takes minutes, and may be stopped meanwhile.

    All, where the length of what is read so far changes how positions are written: keys of earlier pieces would keep
    the positions of a shorter text.
    """
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    kinds = [rope, *(kind for kind in rope.values() if isinstance(kind, dict))]
    whole = any(kind.get("rope_type") in ("dynamic", "longrope") for kind in kinds)
    return sys.maxsize if whole else PIECE


def growing_cache(config: PreTrainedConfig) -> DynamicCache:
    """The cache of a model; layers with a window or a state of their own are transformers'."""
    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
