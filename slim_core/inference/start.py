# SPDX-License-Identifier: Apache-2.0
"""A kept row, and the point in it from which a later prompt continues."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from transformers import DynamicCache

from ..method import GateSetting, RowState
from ..peft_tools import RowRouting


# The PEFT name of the row's variant and what was asked of its gate. The adapter's weights need not be part of it: all
# rows are forgotten when an adapter is attached or detached.
Key = tuple[str, GateSetting]


class KeptRow(NamedTuple):
    """A row that has ended, with what a later prompt needs to continue it.

    Attributes:
        key: its variant and what was asked of its gate.
        tokens: the T token ids that it has read.
        cache: their keys and values, one row.
        state: the sums of its context after them; None if its variant has no contexts.
        routing: of these tokens; None if it was not recorded.
        bytes: memory of all of this.
    """

    key: Key
    tokens: tuple[int, ...]
    cache: DynamicCache
    state: RowState | None
    routing: RowRouting | None
    bytes: int


@dataclass(frozen=True, eq=False)
class Start:
    """The point of a kept row from which a prompt continues.

    Attributes:
        row: the kept row.
        length: number of its tokens that are reused; the prompt begins with them.
        opening: the ids that open a turn for the variant; None if it has no contexts.
    """

    row: KeptRow
    length: int
    opening: tuple[int, ...] | None

    @property
    def state(self) -> RowState | None:
        """The sums of the context at this point."""
        state = self.row.state
        if state is None or self.length == len(self.row.tokens):
            return state
        # The next token begins a new context, so the sums of the last one do not matter.
        sums = {key: torch.zeros_like(kept) for key, kept in state.sums.items()}
        return RowState(sums, torch.zeros_like(state.length))

    @property
    def routing(self) -> RowRouting | None:
        """Routing of the reused tokens."""
        routing = self.row.routing
        return (
            None
            if routing is None
            else RowRouting(*routing[:2], *(values[:, : self.length] for values in routing[2:]))
        )
