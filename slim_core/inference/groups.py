# SPDX-License-Identifier: Apache-2.0
"""Which texts share a batch. All get the width of the longest, and what a shorter one lacks is padding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from . import cache
from .draft import Work


# Texts of at most SHORT tokens may share a batch; of longer ones, none may be more than LONGER times another.
SHORT = 256
LONGER = 2


def alike(lengths: Sequence[int]) -> bool:
    """Whether texts are of similar length, so that little of their batch is padding."""
    return max(lengths) <= max(SHORT, LONGER * min(lengths))


def in_groups(
    works: Sequence[Work], lengths: Callable[[Work], list[int]], unread: Callable[[Work], list[int]] | None = None
) -> Iterator[list[Work]]:
    """Groups of works whose prompts share a batch: of similar length, and together at most one piece.

    Args:
        works: with at least one text each.
        lengths: of the texts of a work.
        unread: how much of each is to be read; None for all.
    """
    unread = unread or lengths
    group: list[Work] = []
    for work in sorted(works, key=lambda work: max(lengths(work))):
        all_lengths, to_read = ([n for member in (*group, work) for n in of(member)] for of in (lengths, unread))
        if group and not (alike(all_lengths) and max(to_read) * len(to_read) <= cache.PIECE):
            yield group
            group = []
        group.append(work)
    if group:
        yield group
