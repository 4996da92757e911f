# SPDX-License-Identifier: Apache-2.0
"""Contexts: the running mean of a Linear's input over the sequence so far, by which SLIM distinguishes tasks.

The paper clusters *samples*. The causal counterpart of a sample is the mean of the tokens x_1 .. x_t of one sequence,
without padding: the context of token t. A new context begins where a sequence of a packed batch begins, and where a
user's turn opens.

Shapes: B rows of the batch, T tokens of the running forward, C channels, L tokens of a block, n = T / L blocks.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .gate import ExcessSum
from .sequence_state import SequenceState, longer_tail, with_steps


# Running sums are one small matrix product in each block of tokens, and an addition from block to block. A cumulative
# sum over a dimension that is not the last is many times slower on CPUs.
BLOCK = 32
# Replaces non-finite values. A context with it is far from every cluster, and its squares overflow, so that no cluster
# learns from it.
FAR = 2.0**100
# Context lengths are grouped by powers of two: 1, 2-3, 4-7, … and from 2^15 on.
LENGTH_BUCKETS = 16

Opening = tuple[int, ...]


class Spans(NamedTuple):
    """The tokens of a forward that each context averages; one object per kind of turn opening.

    Attributes:
        inside: (B, n, L, L) float32; entry (t, s) is 1 where token s of the block counts for the context of token t.
        open_before: (B, n, L) float32; 1 where the context of token t began before its block.
        length: (B, T) float32, number of tokens that a context is the mean of.
        share: (B, T, 1) float32, the weight of each of these tokens: 1 / length.
        bucket: (B, T) int64, which of `LENGTH_BUCKETS` the length is in.
        before: (B,) float32, tokens of the contexts that earlier forwards have begun; None if there are none.
    """

    inside: Tensor
    open_before: Tensor
    length: Tensor
    share: Tensor
    bucket: Tensor
    before: Tensor | None

    def of_rows(self, rows: slice | Tensor) -> Spans:
        """The contexts of some rows of the batch."""
        before = None if self.before is None else self.before[rows]
        inside, open_before = self.inside[rows], self.open_before[rows]
        return Spans(inside, open_before, self.length[rows], self.share[rows], self.bucket[rows], before)


def opens_turn(ids: Tensor, opening: Opening, tail: Tensor | None) -> Tensor:
    """Positions where the opening of a turn has just been read: (B, T) bool, True at its last token.

    Args:
        ids: (B, T) token ids of this forward.
        opening: the ids that open a turn.
        tail: (B, K) ids read before; None at the beginning.
    """
    length = len(opening)
    opening_ids = torch.tensor(opening, device=ids.device)
    if length == 1:
        return ids == opening_ids
    extended = ids if tail is None else torch.cat([tail[:, -length + 1 :], ids], 1)
    extended = F.pad(extended, (length - 1 + ids.shape[1] - extended.shape[1], 0), value=-1)
    return (extended.unfold(1, length, 1) == opening_ids).all(-1)


def spans(begins: Tensor, valid: Tensor | None, before: Tensor | None) -> Spans:
    """Lay out the contexts of a forward.

    Args:
        begins: (B, T) bool, where a context begins.
        valid: (B, T) bool, False for padding; None if every token counts.
        before: (B,) float32, tokens of the contexts that are open from earlier forwards; None if none are.
    """
    batch, tokens = begins.shape
    if tokens == 1:
        inside = begins.new_ones(batch, 1) if valid is None else valid
        return _laid_out(inside.float().view(batch, 1, 1, 1), (~begins).float().view(batch, 1, 1), before, 1)
    length = min(tokens, BLOCK)
    spare = -tokens % length
    begins = F.pad(begins, (0, spare)).view(batch, -1, length)
    # Number of the context within the block; 0 is a context that began in an earlier block.
    number = begins.cumsum(-1)
    inside = (number.unsqueeze(-1) == number.unsqueeze(-2)).tril()
    if valid is not None:
        inside = inside & F.pad(valid, (0, spare)).view(batch, -1, 1, length)
    return _laid_out(inside.float(), (number == 0).float(), before, tokens)


def _laid_out(inside: Tensor, open_before: Tensor, before: Tensor | None, tokens: int) -> Spans:
    length = _from_block_to_block(inside.sum(-1, keepdim=True), open_before, before, 1).flatten(1)[:, :tokens]
    length = length.contiguous()
    edges = 2 ** torch.arange(1, LENGTH_BUCKETS, device=length.device)
    share = length.clamp(min=1).reciprocal().unsqueeze(-1)
    return Spans(inside, open_before, length, share, torch.bucketize(length, edges, right=True), before)


def _from_block_to_block(sums: Tensor, open_before: Tensor, before: Tensor | None, channels: int) -> Tensor:
    """Add to the sums within blocks, (B, n, L, C), those of contexts that began earlier; in place."""
    batch, blocks = open_before.shape[:2]
    carried = None if before is None else before.view(batch, channels)
    for block in range(blocks):
        block_sums = sums[:, block]
        if carried is not None:
            block_sums.addcmul_(open_before[:, block].unsqueeze(-1), carried.unsqueeze(1))
        carried = block_sums[:, -1]
    return sums


def running_sums(x: Tensor, spans: Spans, before: Tensor | None) -> Tensor:
    """Sum of the tokens of each token's context.

    Args:
        x: (B, T, C) float32, zero for padding.
        spans: of these rows.
        before: (B, C) sums of the contexts that are open from earlier forwards; None if none are.

    Returns:
        (B, T, C) float32.
    """
    batch, tokens, channels = x.shape
    if tokens == 1:
        counted = x * spans.inside[:, 0]
        return counted if before is None else torch.addcmul(counted, spans.open_before, before.unsqueeze(1))
    blocks, length = spans.inside.shape[1:3]
    padded = F.pad(x, (0, 0, 0, blocks * length - tokens)) if blocks * length > tokens else x
    sums = spans.inside @ padded.view(batch, blocks, length, channels)
    _from_block_to_block(sums, spans.open_before, before, channels)
    return sums.view(batch, -1, channels)[:, :tokens]


class Contexts(NamedTuple):
    """The contexts of some rows' tokens, tokens flattened.

    Attributes:
        mean: (rows T, C) float32.
        length: (rows T,) float32 number of tokens that each is the mean of.
        bucket: (rows T,) int64 bucket of the length.
    """

    mean: Tensor
    length: Tensor
    bucket: Tensor


class _Request(NamedTuple):
    """The key of shared sums and contexts: what a router asked for.

    Attributes:
        x: the Linear's whole input; `version` shows whether it was written to since.
        opening: the ids that open a turn.
        rows: which rows of the batch; None for all.
    """

    x: Tensor
    version: int
    opening: Opening
    rows: slice | Tensor | None

    @classmethod
    def of(cls, x: Tensor | None, opening: Opening, rows: slice | Tensor | None) -> _Request | None:
        """A key for this input; None if inputs cannot be distinguished."""
        if x is None or torch.compiler.is_compiling():
            return None
        return cls(x, 0 if x.is_inference() else x._version, opening, rows)

    def is_same(self, other: _Request) -> bool:
        """Whether both refer to the same input. Rows are the same object or equal slices."""
        same_rows = self.rows is other.rows or (isinstance(self.rows, slice) and self.rows == other.rows)
        return self.x is other.x and self.version == other.version and self.opening == other.opening and same_rows


class _Shared(NamedTuple):
    """(rows, T, C) sums, and contexts, of the last request."""

    request: _Request
    sums: Tensor
    contexts: Contexts


class Sequences:
    """The sequences of one forward: the model's inputs, and what its cache remembers of earlier forwards.

    Args:
        batch: B.
        tokens: T.
        device: where the tokens are.
        ids: (B, T) token ids; None if the model was given embeddings, so that turn openings cannot be found.
        valid: (B, T) bool, False for padding; None if every token counts.
        positions: (B, T) or (1, T) positions; None if the model counts them itself.
        state: what the cache remembers; None if nothing was read before.
        unknown: why the contexts of what was read before are not known; None if they are.
        keeps: whether a later forward may continue from this one.
        trail: whether tokens of this forward may be taken back then.
    """

    def __init__(
        self,
        batch: int,
        tokens: int,
        device: torch.device,
        ids: Tensor | None = None,
        valid: Tensor | None = None,
        positions: Tensor | None = None,
        state: SequenceState | None = None,
        unknown: str | None = None,
        keeps: bool = False,
        trail: bool = True,
    ) -> None:
        self.batch, self.tokens, self.device = batch, tokens, device
        self.ids, self.valid, self.positions = ids, valid, positions
        self.state, self.unknown = state, unknown
        self.ended = SequenceState() if keeps else None
        self.trail = trail
        # (B, T) bool, which tokens have a loss; None if it is not known.
        self.taught: Tensor | None = None
        # What a decoder's cross-attention reads, and the sequences that it belongs to.
        self.memory: tuple[Tensor, Sequences] | None = None
        self._spans: dict[Opening, Spans] = {}
        self._learned: dict[Opening, Tensor] = {}
        # The same for one token a row, in Python's numbers; see `slim_core.inference.single_token_contexts`.
        self.of_tokens: dict[Opening, Any] = {}
        self._excess: dict[str, ExcessSum] = {}
        self._calls: dict[str, int] = {}
        self._shared: _Shared | None = None

    @property
    def flat_valid(self) -> Tensor | None:
        """(B T,) bool, False for padding; None if every token counts."""
        return None if self.valid is None else self.valid.reshape(-1)

    def learned_from(self, opening: Opening) -> Tensor | None:
        """(B T,) bool, the tokens that clusters learn from; None if they learn from all.

        Padding is left out, and so is a turn without loss: an earlier question whose answer has no loss is not
        training data. Tokens before the first turn belong to it.

        Args:
            opening: the ids that open a turn; `()` if none are looked for, and then the loss does not matter.
        """
        if self.taught is None or not opening or self.ids is None:
            return self.flat_valid
        if opening not in self._learned:
            self._learned[opening] = self._in_taught_turns(opening, self.ids, self.taught)
        return self._learned[opening]

    def _in_taught_turns(self, opening: Opening, ids: Tensor, with_loss: Tensor) -> Tensor:
        turns = opens_turn(ids, opening, None)
        number = self._begins(opening).cumsum(-1)
        # For each context, whether a token in it has a loss, and whether a turn opens it. There is one entry more than
        # there can be contexts.
        taught, turn = (
            number.new_zeros(self.batch, self.tokens + 2).scatter_reduce_(1, number, flags.long(), "amax").bool()
            for flags in (with_loss, turns)
        )
        taught[:, :-1] |= taught[:, 1:] & ~turn[:, :-1]
        learned = taught.gather(1, number)
        return (learned if self.valid is None else learned & self.valid).reshape(-1)

    def spans(self, opening: Opening) -> Spans:
        """Where contexts begin and end for this turn opening; `()` if none is set."""
        layout = self._spans.get(opening)
        if layout is None:
            self.check_known()
            before = None if self.state is None else self.state.count_of(opening)
            layout = spans(self._begins(opening), self.valid, before)
            self._spans[opening] = layout
            if self.ended is not None:
                counts = layout.length.unsqueeze(-1)
                earlier = None if before is None else before.unsqueeze(-1)
                self.ended.counts[opening] = with_steps(earlier, counts, self.trail)
        return layout

    def check_known(self) -> None:
        """Raises ValueError if the contexts of what was read before are not known."""
        if self.unknown is not None:
            raise ValueError(self.unknown)

    def _begins(self, opening: Opening) -> Tensor:
        begins = torch.zeros(self.batch, self.tokens, dtype=torch.bool, device=self.device)
        if self.positions is not None and self.tokens == 1:
            begins = begins | (self.positions == 0)
        elif self.positions is not None:
            # A packed sequence begins at position 0, or wherever the positions go back.
            back = F.pad(self.positions[:, 1:] < self.positions[:, :-1], (1, 0))
            begins = begins | back | (self.positions == 0)
        if opening and self.ids is not None:
            opened = opens_turn(self.ids, opening, None if self.state is None else self.state.tail)
            # Padding ids are not text, even if they look like an opening.
            begins = begins | (opened if self.valid is None else opened & self.valid)
        return begins

    def contexts(
        self, key: str, opening: Opening, x: Tensor, rows: slice | Tensor | None, whole_x: Tensor | None = None
    ) -> Contexts:
        """The contexts of some rows' tokens at one router; they are remembered for the next forward.

        Args:
            key: the router's.
            opening: the ids that open a turn.
            x: (rows T, C) float32 tokens.
            rows: which rows of the batch these are; None for all.
            whole_x: the Linear's input, by which routers that read the same one after the other share their work.

        Raises:
            ValueError: if what was read before this forward was not read with this router.
        """
        key = self.key_of_call(key)
        before = None if self.state is None else self.state.sum_of(key, rows)
        request = _Request.of(whole_x, opening, rows)
        if request is None or self._shared is None or not request.is_same(self._shared.request):
            sums, contexts = self._sum_up(opening, x, rows, before)
            # Only the last one is kept: layers with the same input run one after the other.
            self._shared = None if request is None else _Shared(request, sums, contexts)
        else:
            sums, contexts = self._shared.sums, self._shared.contexts
        if self.ended is not None:
            self.ended.sums[key] = self._kept_steps(sums, before, rows)
        return contexts

    def _sum_up(
        self, opening: Opening, x: Tensor, rows: slice | Tensor | None, before: Tensor | None
    ) -> tuple[Tensor, Contexts]:
        layout = self.spans(opening)
        x = x.view(-1, self.tokens, x.shape[-1])
        if self.tokens > 1:
            # An infinite value times 0 would be NaN in every sum of its block, even in those before it.
            x = torch.nan_to_num(x, nan=FAR, posinf=FAR, neginf=-FAR)
        if rows is not None:
            layout = layout.of_rows(rows)
        if self.valid is not None:
            # Not a product, since values in padding may be infinite.
            valid = self.valid if rows is None else self.valid[rows]
            x = x.masked_fill(~valid.unsqueeze(-1), 0)
        sums = running_sums(x, layout, before)
        # In place if nothing continues from the sums: an extra buffer costs more than the product.
        mean = sums * layout.share if self.ended is not None else sums.mul_(layout.share)
        return sums, Contexts(mean.flatten(0, 1), layout.length.reshape(-1), layout.bucket.reshape(-1))

    def key_of_call(self, key: str) -> str:
        """A separate key for each call in one forward: a router runs twice if blocks share their weights."""
        call = self._calls[key] = self._calls.get(key, 0) + 1
        return key if call == 1 else f"{key} ({call})"

    def excess_sum(self, adapter_name: str) -> ExcessSum:
        """The excesses of the adapter's routers in this forward so far."""
        if adapter_name not in self._excess:
            self._excess[adapter_name] = ExcessSum(self.batch, self.tokens, self.device)
        return self._excess[adapter_name]

    def reset_excess(self) -> None:
        """Reset for another forward with sequences of the same shape."""
        self._excess = {}

    def fits(self, x: Tensor) -> bool:
        """Whether a Linear's input has the shape of these tokens: (B, T, C), or (B T, C) if flattened."""
        return x.shape[:-1] == (self.batch, self.tokens) or (x.dim() == 2 and len(x) == self.batch * self.tokens)

    def of_input(self, x: Tensor) -> Sequences | None:
        """The sequences of a Linear's input; None if its tokens are not these."""
        if self.memory is not None and x is self.memory[0]:
            return self.memory[1]
        return self if self.fits(x) else None

    def _kept_steps(self, sums: Tensor, before: Tensor | None, rows: slice | Tensor | None) -> Tensor:
        """The (B, k, C) sums that a cache remembers."""
        steps = with_steps(before, sums, self.trail)
        if rows is not None:
            of_all = steps.new_zeros(self.batch, *steps.shape[1:])
            of_all[rows] = steps
            return of_all
        return steps

    def state_after(self) -> SequenceState | None:
        """The state that the cache should remember after this forward; None if nothing continues it."""
        self._shared = None
        # Openings of one token can be found without earlier ids.
        if self.ended is not None and any(len(opening) > 1 for opening in (*self._spans, *self.of_tokens)):
            tail = None if self.state is None else self.state.tail
            self.ended.tail = longer_tail(tail, self.ids, self.batch, self.tokens)
        if self.ended is not None and self.batch == 1 and self.trail and not torch.compiler.is_compiling():
            self.ended.follow(self.state, self.tokens)
        return self.ended
