# SPDX-License-Identifier: Apache-2.0
"""What a key-value cache remembers for SLIM: the sums of the contexts from which the next token continues.

The state lives with the cache, since that is what beams reorder, assisted decoding crops, and batches select and
repeat. A cache used with SLIM becomes an instance of a subclass of its class that applies each operation to the state
as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from .batch_rows import BASE_ROW
from .config import LONGEST_OPENING


# After how many of the latest tokens the sums are kept, so that a cache can be cropped: assisted decoding takes back
# tokens of its last forward. Memory is this times C numbers for each router and row, at most.
TRAIL = 64
# How many tokens back the forwards before the latest one are kept beside it, for one row: an adapted model that
# assists guesses token by token, up to twenty by default, and takes back what was wrong. transformers assists single
# rows only.
GUESSES = 20
_ATTRIBUTE = "slim_sequences"

UNKNOWN = (
    "The key-value cache holds {length} tokens whose contexts SLIM does not know: {why}. Let the adapted model read "
    "the whole sequence again with a new cache."
)
NOT_READ = "the adapter that should continue did not read them"


class _Earlier(NamedTuple):
    """A state before its latest forward; see `SequenceState`."""

    length: int | None
    sums: dict[str, Tensor]
    counts: dict[tuple[int, ...], Tensor]
    tail: Tensor | None
    adapters: tuple[str, ...] | None
    read: int


class SequenceState:
    """Sums and counts after the latest tokens of every row.

    Attributes:
        length: tokens in the cache, padding included; None if a compiled forward added some.
        sums: by router, (B, k, C) float32 sums of the context after each of the latest k tokens.
        counts: by opening, (B, k, 1) float32 tokens that these are the sums of.
        tail: (B, K) ids of the latest tokens, -1 where there was none; None if the model was given embeddings.
        adapters: the adapter of each row; None if the active adapters were used for every row.
        read: tokens of the latest forward that are left.
        earlier: what it was before that and the forwards before it, the latest last; for one row.
    """

    def __init__(self) -> None:
        self.read = 0
        self.earlier: tuple[_Earlier, ...] = ()
        self.length: int | None = 0
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[tuple[int, ...], Tensor] = {}
        self.tail: Tensor | None = None
        self.adapters: tuple[str, ...] | None = None

    @property
    def rows(self) -> int | None:
        """Number of rows that it remembers; None if nothing was read with an adapter."""
        tensor = next(iter(self.sums.values()), None)
        return None if tensor is None else len(tensor)

    def sum_of(self, key: str, rows: slice | Tensor | None) -> Tensor:
        """(rows, C) sums of the contexts that are open at a router.

        Raises:
            ValueError: if that router did not read what is in the cache.
        """
        sums = self.kept_sums(key)
        return sums[:, -1] if rows is None else sums[rows, -1]

    def kept_sums(self, key: str) -> Tensor:
        """(B, k, C) sums after each of the latest k tokens; raises as `sum_of`."""
        sums = self.sums.get(key)
        if sums is None:
            raise ValueError(UNKNOWN.format(length=self.length or "some", why=NOT_READ))
        return sums

    def count_of(self, opening: tuple[int, ...]) -> Tensor:
        """(B,) tokens of the contexts that are open.

        Raises:
            ValueError: if they were counted for other openings only.
        """
        return self.kept_counts(opening)[:, -1, 0]

    def kept_counts(self, opening: tuple[int, ...]) -> Tensor:
        """(B, k, 1) counts after each of the latest k tokens; raises as `count_of`."""
        counts = self.counts.get(opening)
        if counts is None:
            raise ValueError(UNKNOWN.format(length=self.length or "some", why=NOT_READ))
        return counts

    def follow(self, before: SequenceState | None, read: int) -> None:
        """Remember the state before a forward of `read` tokens."""
        self.read = read
        if before is not None:
            was = _Earlier(before.length, before.sums, before.counts, before.tail, before.adapters, before.read)
            since, states = read, []
            for state in (was, *reversed(before.earlier)):
                if since > GUESSES:
                    break
                states.append(state)
                since += state.read
            self.earlier = tuple(reversed(states))

    def _change(self, of_rows: Callable[[Tensor], Tensor]) -> None:
        self.sums = {key: of_rows(tensor) for key, tensor in self.sums.items()}
        self.counts = {key: of_rows(tensor) for key, tensor in self.counts.items()}
        if self.tail is not None:
            self.tail = of_rows(self.tail)

    def select(self, index: Tensor) -> None:
        """Keep the rows of `index`, in that order."""
        self.earlier = ()
        self._change(lambda tensor: tensor.index_select(0, index.to(tensor.device)))
        if self.adapters is not None:
            self.adapters = tuple(self.adapters[row] for row in index.tolist())

    def repeat(self, times: int) -> None:
        """Repeat every row."""
        self.earlier = ()
        self._change(lambda tensor: tensor.repeat_interleave(times, dim=0))
        if self.adapters is not None:
            self.adapters = tuple(name for name in self.adapters for _ in range(times))

    def crop(self, count: int) -> bool:
        """Take back the latest `count` tokens. Returns whether the sums before them are still known."""
        while self.earlier and count >= self.read > 0:
            count -= self.read
            *others, was = self.earlier
            self.length, self.sums, self.counts, self.tail, self.adapters, self.read = was
            self.earlier = tuple(others)
        if count == 0:
            return True
        if any(tensor.shape[1] <= count for tensor in (*self.sums.values(), *self.counts.values())):
            return False
        self._change(lambda tensor: tensor[:, :-count])
        self.length = None if self.length is None else self.length - count
        self.read -= count
        return True


def with_steps(before: Tensor | None, steps: Tensor, trail: bool) -> Tensor:
    """The part of a forward's (B, T, C) `steps` that is kept.

    Only the last step, or all of them, preceded by (B, C) `before`, if tokens may be removed later (`trail`).
    """
    if not trail or steps.shape[1] > TRAIL:
        return steps[:, -1:].clone()
    first = steps.new_zeros(steps.shape[0], 1, steps.shape[2]) if before is None else before.unsqueeze(1)
    return torch.cat([first, steps], 1)


def longer_tail(tail: Tensor | None, ids: Tensor | None, batch: int, tokens: int) -> Tensor | None:
    """The ids of the latest tokens, after `ids` (B, T) were read, or embeddings of as many tokens.

    Always as many as can be taken back and an opening before them, so that no compiled step sees another shape.
    """
    if ids is None:
        if tail is None:
            return None
        ids = tail.new_full((batch, tokens), -1)
    width = TRAIL + LONGEST_OPENING
    if tail is not None and ids.shape[1] < width:
        ids = torch.cat([tail[:, ids.shape[1] - width :], ids], 1)
    return F.pad(ids[:, -width:], (max(0, width - ids.shape[1]), 0), value=-1)


class _Remembering(Cache):
    """Applies each operation on the cache to the state as well."""

    slim_sequences: SequenceState

    def __reduce__(self) -> tuple[Any, ...]:
        # pickle finds by name the class that this one was derived from.
        return _empty, (type(self).__bases__[1],), self.__dict__

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        super().reorder_cache(beam_idx)
        self.slim_sequences.select(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self.slim_sequences.select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self.slim_sequences.repeat(repeats)

    def crop(self, tokens_to_remove: int) -> None:
        before = tokens_in(self)
        super().crop(tokens_to_remove)
        after = tokens_in(self)
        removed = abs(tokens_to_remove) if before is None or after is None else int(before) - int(after)
        if after == 0 or not self.slim_sequences.crop(removed):
            # The contexts are then unknown, which does not matter if the cache is empty.
            self.slim_sequences = SequenceState()

    def reset(self) -> None:
        super().reset()
        self.slim_sequences = SequenceState()


_made: dict[type[Cache], type[Cache]] = {}


def _remembering(kind: type[Cache]) -> type[Cache]:
    if kind not in _made:
        names = {"__module__": kind.__module__, "__doc__": kind.__doc__}
        _made[kind] = type(kind.__name__, (_Remembering, kind), names)
    return _made[kind]


def _empty(kind: type[Cache]) -> Cache:
    remembering = _remembering(kind)
    return remembering.__new__(remembering)


def part_with_tokens(cache: Any) -> Any:
    """The cache that grows with the tokens read: of an encoder-decoder's two, the one of self-attention."""
    return getattr(cache, "self_attention_cache", cache)


def tokens_in(cache: Cache) -> int | Tensor | None:
    """Number of tokens in a cache, () int64 for a static one; None if some: recurrent layers do not count them."""
    if cache.layers and not any(isinstance(layer, CacheLayerMixin) for layer in cache.layers):
        return None if cache.has_previous_state() else 0
    return cache.get_seq_length()


def state_on(cache: Any) -> SequenceState | None:
    """The state stored with a cache; None if there is none."""
    return getattr(part_with_tokens(cache), _ATTRIBUTE, None)


class RowsOf(NamedTuple):
    """Some rows of a cache, for a cache that is joined from several.

    Attributes:
        cache: the cache.
        rows: (n,) int64 indices of its rows, on the CPU.
        places: (n,) int64 indices of these rows in the joined cache, on the CPU.
    """

    cache: Any
    rows: Tensor
    places: Tensor


def put_together(cache: Any, parts: Sequence[RowsOf], rows: int, length: int) -> None:
    """Give a joined cache the states of its parts. It cannot be cropped to fewer tokens than it has now.

    Args:
        cache: the joined cache.
        parts: the sources of its rows.
        rows: number of its rows.
        length: number of its columns, padding included; the parts may have had more or less padding.
    """
    remembered = [(part, state) for part in parts if (state := state_on(part.cache)) is not None]
    if not remembered:
        return
    joined = SequenceState()
    joined.length = length
    # A row that a router has not read belongs to another adapter.
    for key in dict.fromkeys(key for _, state in remembered for key in state.sums):
        latest = [(part, state.sums[key][:, -1:]) for part, state in remembered if key in state.sums]
        joined.sums[key] = _rows_of(latest, rows, 0)
    for opening in dict.fromkeys(opening for _, state in remembered for opening in state.counts):
        latest = [(part, state.counts[opening][:, -1:]) for part, state in remembered if opening in state.counts]
        joined.counts[opening] = _rows_of(latest, rows, 0)
    tails = [(part, state.tail) for part, state in remembered if state.tail is not None]
    if tails:
        joined.tail = _rows_of(tails, rows, -1)
    names = [BASE_ROW] * rows
    for part, state in remembered:
        for row, place in zip(part.rows.tolist(), part.places.tolist(), strict=True):
            names[place] = names[place] if state.adapters is None else state.adapters[row]
    joined.adapters = tuple(names)
    put_state(cache, joined)


class RowState(NamedTuple):
    """What one row needs so that a later forward can continue its context.

    Attributes:
        sums: by router of the row's adapter, (C,) float32 sums of the context that is open.
        length: () float32 number of tokens in these sums.
    """

    sums: dict[str, Tensor]
    length: Tensor


def router_key(module: str, adapter: str, deletions: int) -> str:
    """The key under which a cache remembers a router's sums.

    Args:
        module: where the router is.
        adapter: its name.
        deletions: how many adapters of this name were deleted before. What one of them has read is not the next one's.
    """
    return f"{module} of {adapter}" + (f" ({deletions} deleted)" if deletions else "")


def state_of_row(cache: Any, row: int, adapter: str, opening: tuple[int, ...]) -> RowState | None:
    """A copy of what a cache remembers for one row; None if it remembers nothing for that adapter.

    Args:
        cache: the cache.
        row: which of its rows.
        adapter: of the row; its distance is that of the context.
        opening: the ids that open a turn for it.
    """
    state, suffix = state_on(cache), router_key("", adapter, 0)
    if state is None or opening not in state.counts:
        return None
    # A key may end with numbers: of earlier adapters of this name, and of a router that runs twice in a forward.
    of_adapter = {key: sums for key, sums in state.sums.items() if key.endswith(suffix) or f"{suffix} (" in key}
    return RowState(
        {key: sums[row, -1].clone() for key, sums in of_adapter.items()}, state.counts[opening][row, -1, 0].clone()
    )


def put_row_states(
    cache: Any,
    length: int,
    adapters: Sequence[str],
    tails: Sequence[Sequence[int]],
    states: Mapping[int, tuple[tuple[int, ...], RowState]],
    device: torch.device,
) -> None:
    """Give a cache that was made of rows of others the states of these rows.

    Args:
        cache: with B rows.
        length: tokens in it, padding included.
        adapters: of the B rows.
        tails: the B rows' ids so far.
        states: by row, the ids that open a turn for its adapter, and its state. Rows whose adapter has no contexts
            have none.
        device: where ids are.
    """
    state = SequenceState()
    state.length, state.adapters = length, tuple(adapters)
    width = TRAIL + LONGEST_OPENING
    filled = [[-1] * (width - len(ids)) + list(ids[-width:]) for ids in tails]
    state.tail = torch.tensor(filled, device=device)
    for row, (opening, of_row) in states.items():
        for key, row_sum in of_row.sums.items():
            if key not in state.sums:
                state.sums[key] = row_sum.new_zeros(len(adapters), 1, *row_sum.shape)
            state.sums[key][row, 0] = row_sum
        if opening not in state.counts:
            state.counts[opening] = of_row.length.new_zeros(len(adapters), 1, 1)
        state.counts[opening][row] = of_row.length
    put_state(cache, state)


def _rows_of(parts: Sequence[tuple[RowsOf, Tensor]], rows: int, filler: int) -> Tensor:
    """(rows, ...) the parts' rows at their places, and `filler` elsewhere."""
    first = parts[0][1]
    joined = first.new_full((rows, *first.shape[1:]), filler)
    for part, tensor in parts:
        joined[part.places.to(tensor.device)] = tensor[part.rows.to(tensor.device)]
    return joined


def put_state(cache: Any, state: SequenceState) -> None:
    """Store the state with a cache."""
    cache = part_with_tokens(cache)
    if not isinstance(cache, Cache):
        return
    if not isinstance(cache, _Remembering) and not torch.compiler.is_compiling():
        cache.__class__ = _remembering(type(cache))
    setattr(cache, _ATTRIBUTE, state)
