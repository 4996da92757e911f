# SPDX-License-Identifier: Apache-2.0
"""The rows of one batch: prompts are read in pieces, then each forward adds a token to every row; rows join and leave.

Rows are aligned at their ends, so padding is on the left. Rows of the same adapter are neighbours.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..method import RowsOf
from ..peft_tools import RowScopes
from .cache import GrowingLayer, bytes_of, growing_cache, is_growing, joined_cache, longest_piece, positions_vary
from .draft import Draft
from .drift import LOGITS_AT_ONCE
from .forward import forward_arguments
from .kept import KeptRow, begun_cache, kept_row
from .log_probs import add_of_prompt


class Batch:
    """The rows that are being written, and all tensors that belong to them.

    Args:
        model: the base model with its adapters, in evaluation mode.
        scopes: of the model.
        answers: the drafts, each with a prompt; at least one.

    Attributes:
        answers: the B rows.
        width: columns of the cache, and of what is to be read next.
        unread: how many of these columns are not in the cache yet.
    """

    @torch.inference_mode()
    def __init__(self, model: PreTrainedModel, scopes: RowScopes, answers: Sequence[Draft]) -> None:
        self._model, self._scopes = model, scopes
        self.answers = in_order(answers)
        starts = [answer.start for answer in self.answers]
        kept_lengths = [0 if start is None else start.length for start in starts]
        self.unread = max(len(answer.prompt) - n for answer, n in zip(self.answers, kept_lengths, strict=True))
        self._held = max(kept_lengths)
        self.width = self._held + self.unread
        self._padding = [self.width - len(answer.prompt) for answer in self.answers]
        # A row that continues a kept one has its padding behind the kept tokens until its whole prompt is read.
        self._gaps = [p - (self._held - n) if n else 0 for p, n in zip(self._padding, kept_lengths, strict=True)]
        device = model.device
        # Padding is masked, so its token does not matter. Tokens in a gap do, since an opening may begin before it.
        texts = [[0] * padding + answer.prompt for padding, answer in zip(self._padding, self.answers, strict=True)]
        self._next = torch.tensor([ids[-self.unread :] for ids in texts], device=device)
        columns, before = (
            torch.arange(self._held, self.width, device=device),
            torch.tensor(self._padding, device=device),
        )
        first = torch.tensor(kept_lengths, device=device).unsqueeze(1)
        self._positions = torch.maximum(columns - before.unsqueeze(1), first)
        self._cache = begun_cache(model, self.answers, self._gaps) if self._held else growing_cache(model.config)
        self._trace = scopes.trace(self._traced_rows()) if self._traced_rows() else None
        # Whether what is traced are single tokens, none of them padding.
        self._traces_tokens = True
        self._set_rows()

    @property
    def device(self) -> torch.device:
        return self._model.device

    @property
    def joins(self) -> bool:
        """Whether rows can join it."""
        return is_growing(self._cache)

    @property
    def column_bytes(self) -> float:
        """Memory of one token of one row in the cache; 0 while it is empty."""
        read = self.width - self.unread
        return bytes_of(self._cache) / (len(self.answers) * read) if read else 0.0

    @property
    def lengths(self) -> list[int]:
        """(B,) tokens of each row, with those that are to be read next."""
        return [self.width - padding for padding in self._padding]

    def _traced_rows(self) -> list[int]:
        """The rows whose routing is recorded."""
        return [
            i for i, answer in enumerate(self.answers) if answer.routing and answer.peft_name in self._scopes.traceable
        ]

    def _go_on_tracing(
        self, parts: Sequence[tuple[Batch, Sequence[int]]], sources: Sequence[tuple[int, int, Draft]]
    ) -> None:
        """Continue the trace of the first part. What the other parts have recorded is handed to their drafts."""
        first, traced = parts[0][0], self._traced_rows()
        self._trace, self._traces_tokens = None, True
        for number, (batch, _) in enumerate(parts):
            if number or not batch._traces_tokens:
                batch.read_routing()
        if not traced:
            return
        if first._trace is None:
            self._trace = self._scopes.trace(traced)
        else:
            places = {row: place for place, (part, row, _) in enumerate(sources) if part == 0}
            self._trace = first._trace.moved(places, traced)

    def _set_rows(self) -> None:
        names = [answer.peft_name for answer in self.answers]
        gates = [answer.gate for answer in self.answers]
        self._rows = self._scopes.rows(names, gates) if self._scopes.adapted else None
        self._set_mask()

    def _set_mask(self) -> None:
        self._mask: Tensor | None = None
        if any(self._padding):
            # As long as the longest answer may get, so that a step takes a slice of it.
            room = max(answer.limit - len(answer.ids) for answer in self.answers)
            columns = torch.arange(self.width + room, device=self.device)
            padding, gaps = (torch.tensor(n, device=self.device).unsqueeze(1) for n in (self._padding, self._gaps))
            in_gap = (columns >= self._held) & (columns < self._held + gaps)
            self._mask = ((columns >= padding - gaps) & ~in_gap).long()

    # -- forwards ------------------------------------------------------------------------------------------------

    def read_piece(self, shared: bool = False) -> bool:
        """Read the next piece of the prompts, if `forward` would otherwise read more than one piece at once.

        Args:
            shared: whether other answers wait meanwhile, so that the piece must be short.

        Returns:
            Whether there was such a piece.
        """
        piece = self._longest_piece(shared)
        if not self.answers or self.unread <= piece:
            return False
        self._read(piece)
        self._next, self._positions = self._next[:, piece:], self._positions[:, piece:]
        return True

    def _longest_piece(self, shared: bool) -> int:
        config = self._model.config
        piece = longest_piece(config, shared)
        if self._scored() and not positions_vary(config):
            # The logits of a whole piece are in memory at once.
            piece = min(piece, max(1, LOGITS_AT_ONCE // (len(self.answers) * config.get_text_config().vocab_size)))
        return piece

    def _scored(self) -> list[int]:
        """The rows whose prompts still need log-probabilities."""
        return [
            row
            for row, answer in enumerate(self.answers)
            if answer.scores_prompt and len(answer.prompt_log_probs) < len(answer.prompt)
        ]

    def forward(self) -> Tensor:
        """Read the next tokens of all rows; (B, V) logits of those that follow, which `append` is given."""
        return self._read(self.unread)

    @torch.inference_mode()
    def append(self, tokens: Tensor) -> None:
        """Set the (B,) next tokens, on the model's device."""
        self._next = tokens.unsqueeze(1)
        self._positions = self._positions[:, -1:] + 1
        self.width += 1
        self.unread = 1

    @torch.inference_mode()
    def _read(self, count: int) -> Tensor:
        """Read `count` of the unread columns; returns (B, V) logits of the last one."""
        ids, positions = self._next[:, :count], self._positions[:, :count]
        before = self.width - self.unread
        mask = None if self._mask is None else self._mask[:, : before + count]
        scored = self._scored()
        arguments = forward_arguments(self._model, ids, positions, mask, self._cache, keep=count if scored else 1)
        if self._trace is not None and count > 1:
            self._traces_tokens = False
        recorded = 0 if self._trace is None else self._trace.forwards
        try:
            with self._scopes.answering(self._rows, self._trace):
                output = self._model(**arguments)
        except BaseException:
            self._take_back(before, recorded)
            raise
        self.unread -= count
        for row in scored:
            # Columns of the text itself; those before it are padding.
            first = max(before, self._padding[row])
            if first < before + count:
                add_of_prompt(
                    self.answers[row], output.logits[row, first - before - count :], first - self._padding[row]
                )
        if not self.unread:
            self._close_gaps()
        return output.logits[:, -1]

    def _close_gaps(self) -> None:
        """All prompts are read: move kept keys and values next to the rest of their text."""
        for row, gap in enumerate(self._gaps):
            if gap:
                begin = self._padding[row] - gap
                for layer in self._cache.layers:
                    assert isinstance(layer, GrowingLayer)  # rows with other layers never continue a kept row
                    layer.move(row, begin, self._held, gap)
        if any(self._gaps):
            self._gaps = [0 for _ in self._gaps]
            self._set_mask()

    def _take_back(self, length: int, recorded: int) -> None:
        """A forward has failed: drop its tokens from the layers that had stored them."""
        for layer in self._cache.layers:
            if isinstance(layer, GrowingLayer):
                layer.cut(length)
        if self._trace is not None:
            self._trace.forget_since(recorded)

    def kept(self, draft: Draft) -> KeptRow | None:
        """A copy of a row that has ended; None if no later prompt could continue it."""
        row = self.answers.index(draft)
        columns = slice(self._padding[row], self.width - self.unread)
        return kept_row(draft, self._cache, row, columns, self._scopes.openings.get(draft.peft_name))

    # -- routing -------------------------------------------------------------------------------------------------

    def read_routing(self, rows: Collection[Draft] | None = None) -> None:
        """Move the routing recorded since the last call to the given drafts, or to all."""
        if self._trace is None:
            return
        for row in self._trace.rows:
            if rows is None or self.answers[row] in rows:
                self.answers[row].records.append(self._trace.take(row))
        self._traces_tokens = self._traces_tokens or not self._trace.rows


@torch.inference_mode()
def together(parts: Sequence[tuple[Batch, Sequence[int]]]) -> Batch:
    """Form one batch of rows of other batches, which must not be used afterwards. Padding of all rows is cut off.

    Args:
        parts: batches with the indices of their rows; at least one row in all. If there are several batches, rows can
            join each of them, and all their prompts have been read.
    """
    sources = [(number, row, batch.answers[row]) for number, (batch, rows) in enumerate(parts) for row in rows]
    sources.sort(key=lambda source: source[2].peft_name)
    first = parts[0][0]
    joined = Batch.__new__(Batch)
    joined._model, joined._scopes, joined.unread = first._model, first._scopes, first.unread
    joined.answers = [answer for _, _, answer in sources]
    lengths = [parts[number][0].lengths[row] for number, row, _ in sources]
    # Padding stays in caches with a sliding window and while a prompt is read: both count columns from the start.
    trimmed = first.joins and first.unread == 1
    joined.width = max(lengths) if trimmed else first.width
    joined._padding = [joined.width - length for length in lengths]
    rows_of_parts = [
        RowsOf(
            batch._cache,
            torch.tensor([row for part, row, _ in sources if part == number]),
            torch.tensor([place for place, (part, _, _) in enumerate(sources) if part == number]),
        )
        for number, (batch, _) in enumerate(parts)
    ]
    # The new order of the rows, from the parts' rows one after the other.
    behind = torch.cat([part.places for part in rows_of_parts]).argsort()
    joined._held = first._held
    joined._gaps = [parts[number][0]._gaps[row] for number, row, _ in sources]
    for name in ("_next", "_positions"):
        rows = [getattr(batch, name)[part.rows] for (batch, _), part in zip(parts, rows_of_parts, strict=True)]
        setattr(joined, name, torch.cat(rows)[behind])
    read_columns = joined.width - joined.unread
    if not first.joins:
        joined._cache = first._cache
        joined._cache.batch_select_indices(rows_of_parts[0].rows)
    elif read_columns:
        joined._cache = joined_cache(
            joined._model.config, [part for part in rows_of_parts if len(part.rows)], len(sources), read_columns
        )
    else:
        joined._cache = growing_cache(joined._model.config)
    joined._go_on_tracing(parts, sources)
    joined._set_rows()
    return joined


def in_order(answers: Sequence[Draft]) -> list[Draft]:
    """Sorted so that rows of the same adapter are neighbours."""
    return sorted(answers, key=lambda answer: answer.peft_name)
