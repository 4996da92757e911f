# SPDX-License-Identifier: Apache-2.0
"""Rows that have ended, kept so that a later prompt that begins with their tokens need not be read from its beginning.

The next turn of a conversation is such a prompt. Only the tokens matter: if a chat template writes an earlier turn
differently, nothing is reused from there on.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice

import torch
from transformers import DynamicCache, PreTrainedModel

from ..method import RowsOf, put_row_states, state_of_row
from .cache import GrowingLayer, bytes_of, joined_cache, layerwise
from .draft import Draft
from .records import joined_records
from .start import KeptRow, Key, Start


# Shorter texts are not worth keeping: they are read again.
LEAST = 16
# How many kept rows are considered for a prompt. They are in order of how many tokens they share with it, so a better
# one (whose whole text the prompt begins with) is near the front.
NEIGHBOURS = 8


class KeptRows:
    """The most recently used rows, as many as fit in memory. One thread at a time calls its methods.

    Args:
        possible: whether the model's caches can be continued: each token has a column, and keeps its position.

    Attributes:
        most_bytes: how much memory they may take; 0 keeps none.
        bytes: how much they take.
    """

    def __init__(self, possible: bool = True) -> None:
        self._possible = possible
        self.most_bytes = self.bytes = 0
        # The most recently used last.
        self._rows: OrderedDict[tuple[Key, tuple[int, ...]], KeptRow] = OrderedDict()
        # Sorted, so that texts with a common beginning are neighbours.
        self._tokens: dict[Key, list[tuple[int, ...]]] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def keep_at_most(self, most_bytes: int) -> None:
        """Set how much memory they may take, in bytes."""
        self.most_bytes = most_bytes if self._possible else 0
        self._shrink()

    def clear(self) -> None:
        """Forget all."""
        self._rows.clear()
        self._tokens.clear()
        self.bytes = 0

    def keep(self, row: KeptRow) -> None:
        """Keep a row, and forget the one that it continues."""
        if row.bytes > self.most_bytes:
            return
        kept_tokens = self._tokens.setdefault(row.key, [])
        place = bisect_left(kept_tokens, row.tokens)
        if place < len(kept_tokens) and kept_tokens[place] == row.tokens:
            self._forget(row.key, row.tokens)
        if place and row.tokens[: len(kept_tokens[place - 1])] == kept_tokens[place - 1]:
            before = self._rows[row.key, kept_tokens[place - 1]]
            if row.routing is not None or before.routing is None:
                self._forget(row.key, before.tokens)
        kept_tokens = self._tokens.setdefault(row.key, [])
        insort(kept_tokens, row.tokens)
        self._rows[row.key, row.tokens] = row
        self.bytes += row.bytes
        self._shrink()

    def _shrink(self) -> None:
        while self.bytes > self.most_bytes:
            self._forget(*next(iter(self._rows)))

    def _forget(self, key: Key, tokens: tuple[int, ...]) -> None:
        self.bytes -= self._rows.pop((key, tokens)).bytes
        kept_tokens = self._tokens[key]
        del kept_tokens[bisect_left(kept_tokens, tokens)]
        if not kept_tokens:
            del self._tokens[key]

    def starts(
        self, drafts: Sequence[Draft], openings: Mapping[str, tuple[int, ...]], traceable: set[str]
    ) -> list[Start | None]:
        """The kept row that each of a caller's rows continues from; none if that would save too little.

        They are read as one batch, which costs as much as its longest unread rest.

        Args:
            drafts: the rows.
            openings: of the variants that have contexts, by PEFT name.
            traceable: variants whose routing can be recorded.
        """
        none: list[Start | None] = [None for _ in drafts]
        if not self._rows or any(draft.scores_prompt for draft in drafts):
            return none
        starts = [self._start(draft, openings.get(draft.peft_name), traceable) for draft in drafts]
        if any(start is None and draft.peft_name in openings for start, draft in zip(starts, drafts, strict=True)):
            return none
        longest_rest = max(
            len(draft.prompt) - (start.length if start else 0) for start, draft in zip(starts, drafts, strict=True)
        )
        if max(len(draft.prompt) for draft in drafts) - longest_rest < LEAST:
            return none
        for start in starts:
            if start is not None:
                self._rows.move_to_end((start.row.key, start.row.tokens))
        return starts

    def _start(self, draft: Draft, opening: tuple[int, ...] | None, traceable: set[str]) -> Start | None:
        """The start that leaves the fewest tokens to be read."""
        best: Start | None = None
        recorded = draft.routing and draft.peft_name in traceable
        neighbours = self._alike((draft.peft_name, draft.gate), tuple(draft.prompt))
        for row, alike in islice(neighbours, NEIGHBOURS):
            if alike < LEAST or (best is not None and alike <= best.length):
                break
            length = alike
            # Before its end, a row can be continued only from the opening of a turn, where contexts start anew.
            if opening is not None and alike < len(row.tokens):
                length = _last_opening(draft.prompt, alike, opening)
            if length > (best.length if best else 0) and (row.routing is not None or not recorded):
                best = Start(row, length, opening)
        return best

    def _alike(self, key: Key, prompt: tuple[int, ...]) -> Iterator[tuple[KeptRow, int]]:
        """Kept rows, with the number of tokens each shares with a prompt (without its last), in descending order."""
        kept_tokens = self._tokens.get(key, [])
        before = bisect_left(kept_tokens, prompt) - 1
        behind = before + 1
        while before >= 0 or behind < len(kept_tokens):
            sides = [(_common(kept_tokens[at], prompt), at) for at in (before, behind) if 0 <= at < len(kept_tokens)]
            length, at = max(sides)
            before, behind = (before - 1, behind) if at == before else (before, behind + 1)
            yield self._rows[key, kept_tokens[at]], length


def _common(tokens: tuple[int, ...], prompt: tuple[int, ...]) -> int:
    """Length of the common beginning, without the prompt's last token, which must be read to predict the next."""
    length = min(len(tokens), len(prompt) - 1)
    if tokens[:length] == prompt[:length]:
        return length
    return next(place for place in range(length) if tokens[place] != prompt[place])


def _last_opening(prompt: Sequence[int], limit: int, opening: tuple[int, ...]) -> int:
    """The last place, at most `limit`, whose token ends the opening of a turn; 0 if there is none."""
    size = len(opening)
    ends = (end for end in range(limit, size - 2, -1) if tuple(prompt[end - size + 1 : end + 1]) == opening)
    return next(ends, 0) if size else 0


def begun_cache(model: PreTrainedModel, drafts: Sequence[Draft], gaps: Sequence[int]) -> DynamicCache:
    """A cache for rows that continue kept ones, aligned at their ends.

    Args:
        model: the model.
        drafts: the rows; at least one has a start.
        gaps: for each row, how much padding is read between what is kept and the rest of its text.
    """
    starts = {row: draft.start for row, draft in enumerate(drafts) if draft.start is not None}
    parts = []
    for row, start in starts.items():
        row_cache = layerwise(start.row.cache, partial(GrowingLayer.upto, length=start.length))
        parts.append(RowsOf(row_cache, torch.tensor([0]), torch.tensor([row])))
    length = max(start.length for start in starts.values())
    cache = joined_cache(model.config, parts, len(drafts), length)
    # In a gap, the tokens before it are read once more without counting.
    ends = [starts[row].length - gap if row in starts else 0 for row, gap in enumerate(gaps)]
    tails = [draft.prompt[: max(0, end)] for draft, end in zip(drafts, ends, strict=True)]
    states = {
        row: (start.opening, state)
        for row, start in starts.items()
        if start.opening is not None and (state := start.state) is not None
    }
    put_row_states(cache, length, [draft.peft_name for draft in drafts], tails, states, model.device)
    return cache


@torch.inference_mode()
def kept_row(
    draft: Draft, cache: DynamicCache, row: int, columns: slice, opening: tuple[int, ...] | None
) -> KeptRow | None:
    """A row that has ended, as it is kept; None if it is too short, or if nothing can continue it.

    Args:
        draft: the row's draft.
        cache: where its keys and values are.
        row: which row of it.
        columns: of its text.
        opening: the ids that open a turn for its variant; None if it has no contexts.
    """
    count = columns.stop - columns.start
    if count < LEAST:
        return None
    state = None if opening is None else state_of_row(cache, row, draft.peft_name, opening)
    if opening is not None and state is None:
        return None
    row_cache = layerwise(cache, lambda layer: layer.row(row, columns.start, columns.stop))
    records = list(draft.records)
    routing = joined_records(records) if records else None
    if routing is not None and routing.weights.shape[1] != count:
        routing = None
    size = bytes_of(row_cache) + 8 * count
    tensors = [*(state.sums.values() if state else ()), *(routing[2:] if routing else ())]
    size += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    tokens = tuple([*draft.prompt, *draft.ids][:count])
    return KeptRow((draft.peft_name, draft.gate), tokens, row_cache, state, routing, size)
