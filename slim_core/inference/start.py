# SPDX-License-Identifier: Apache-2.0
"""A row that has ended and is kept, and the place in it behind which a prompt begins to be read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from transformers import DynamicCache

from ..method import RowState
from ..peft_tools import RowRouting


# Whose row it was: the variant's PEFT name and the strength of its gate. What else could change an answer, the adapter
# itself, is not in it: when one comes or goes all rows are forgotten.
Key = tuple[str, float | None]


class KeptRow(NamedTuple):
    """A row that has ended.

    Attributes:
        key: whose it is.
        tokens: T ids that it has read.
        cache: their keys and values, a row.
        state: where its context stood behind them; None if its variant has none.
        routing: of these tokens; None if it was not recorded.
        bytes: memory of all that.
    """

    key: Key
    tokens: tuple[int, ...]
    cache: DynamicCache
    state: RowState | None
    routing: RowRouting | None
    bytes: int


@dataclass(frozen=True, eq=False)
class Start:
    """Where a prompt begins to be read.

    Attributes:
        row: what has read everything before.
        length: how many of its tokens the prompt begins with, as far as they are used.
        opening: the ids that open a turn for the variant; None if it has no contexts.
    """

    row: KeptRow
    length: int
    opening: tuple[int, ...] | None

    @property
    def state(self) -> RowState | None:
        """Where the context stands there."""
        state = self.row.state
        if state is None or self.length == len(self.row.tokens):
            return state
        # The next token begins a context: what was in the one before does not matter.
        sums = {key: torch.zeros_like(kept) for key, kept in state.sums.items()}
        return RowState(sums, torch.zeros_like(state.length))

    @property
    def routing(self) -> RowRouting | None:
        """Of the tokens before."""
        routing = self.row.routing
        return None if routing is None else RowRouting(*routing[:2], *(part[:, : self.length] for part in routing[2:]))
