# SPDX-License-Identifier: Apache-2.0
"""The contexts of a forward that reads one token of each row on a CPU, as Python numbers.

The result is that of `contexts.spans` for T = 1, whose some twenty operations on tiny tensors would take longer than
the routing itself.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..method.contexts import LENGTH_BUCKETS, Opening, Sequences
from ..method.gate import ExcessSum


class CarriedExcess(NamedTuple):
    """The excesses of one adapter's routers so far, for `carry_up`.

    Attributes:
        excess: the sum.
        by_row: (B,) float32, its memory.
    """

    excess: ExcessSum
    by_row: np.ndarray


class TokenContexts(NamedTuple):
    """How each row's only token changes the row's context.

    Attributes:
        counts: over how many tokens each context is the mean.
        buckets: the length buckets of the counts.
        continues: (B, 1) bool, False if the token begins a new context; None if all tokens continue one.
        counted: (B, 1) bool, False for padding; None if every token counts.
        carried: by adapter name.
    """

    counts: list[int]
    buckets: list[int]
    continues: np.ndarray | None
    counted: np.ndarray | None
    carried: dict[str, CarriedExcess]

    def carried_by(self, name: str, sequences: Sequences) -> CarriedExcess:
        """What the routers of an adapter have carried up so far in this forward."""
        carried = self.carried.get(name)
        if carried is None:
            excess = sequences.excess_sum(name)
            carried = self.carried[name] = CarriedExcess(excess, excess.total.numpy()[:, 0])
        return carried


def token_contexts(sequences: Sequences, opening: Opening) -> TokenContexts:
    """The contexts of a forward with one token per row, computed once for all Linears. Their counts are kept for
    the next forward.

    Args:
        sequences: what the forward reads.
        opening: the ids that open a turn.

    Raises:
        ValueError: if it is unknown what was read before.
    """
    contexts = sequences.of_tokens.get(opening)
    if contexts is None:
        contexts = sequences.of_tokens[opening] = _compute(sequences, opening)
    return contexts


def extended_sums(key: str, tokens: np.ndarray, contexts: TokenContexts, sequences: Sequences) -> np.ndarray:
    """(B, 2, C) float32 sums of the contexts before and after the tokens.

    Args:
        key: of a router that has read what came before.
        tokens: (B, C) float32.
        contexts: of this forward.
        sequences: what it reads.

    Raises:
        ValueError: if that router has not read what is in the cache.
    """
    steps = np.empty((tokens.shape[0], 2, tokens.shape[1]), np.float32)
    steps[:, 0] = before = 0 if sequences.state is None else sequences.state.kept_sums(key).numpy()[:, -1]
    carried = before if contexts.continues is None else np.where(contexts.continues, before, 0)
    np.add(carried, tokens if contexts.counted is None else np.where(contexts.counted, tokens, 0), out=steps[:, 1])
    return steps


def _compute(sequences: Sequences, opening: Opening) -> TokenContexts:
    sequences.check_known()
    rows = range(sequences.batch)
    before = [0 for _ in rows]
    if sequences.state is not None:
        before = list(map(int, sequences.state.kept_counts(opening).numpy()[:, -1, 0].tolist()))
    valid = [True for _ in rows] if sequences.valid is None else sequences.valid[:, 0].tolist()
    begins = [False for _ in rows]
    if sequences.positions is not None:
        positions = sequences.positions.tolist()
        begins = [position == 0 for (position,) in (positions if len(positions) > 1 else positions * len(rows))]
    if opening and sequences.ids is not None:
        opened = _opens_turn(sequences, sequences.ids, opening)
        begins = [begun or opens for begun, opens in zip(begins, opened, strict=True)]
    counts = [(0 if begins[row] else before[row]) + valid[row] for row in rows]
    if sequences.ended is not None:
        pairs = np.empty((len(rows), 2, 1), np.float32)
        pairs[:, 0, 0], pairs[:, 1, 0] = before, counts
        steps = torch.from_numpy(pairs)
        sequences.ended.counts[opening] = steps if sequences.trail else steps[:, -1:]
    return TokenContexts(
        counts,
        [min(max(count, 1).bit_length(), LENGTH_BUCKETS) - 1 for count in counts],
        ~np.array(begins)[:, None] if any(begins) else None,
        None if all(valid) else np.array(valid)[:, None],
        {},
    )


def _opens_turn(sequences: Sequences, tokens: Tensor, opening: Opening) -> list[bool]:
    ids = [token for (token,) in tokens.tolist()]
    if len(opening) == 1:
        return [token == opening[0] for token in ids]
    tail = None if sequences.state is None else sequences.state.tail
    if tail is None:
        return [False for _ in ids]
    earlier = tail[:, -len(opening) + 1 :].tolist()
    return [(*read, token) == opening for read, token in zip(earlier, ids, strict=True)]
