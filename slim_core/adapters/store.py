# SPDX-License-Identifier: Apache-2.0
"""Adapters of many visitors in bounded memory: the least recently used is removed first, and its owner is told."""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from ..outside.errors import AdapterError, megabytes, quoted
from .adapter import Adapter


# Why an adapter was removed, as the end of a sentence.
OWN_NEW = "to make room for your new one"
OTHERS_NEW = "because others needed the memory and it was the least recently used"


class NoRoomError(AdapterError):
    """There is no room for an adapter as long as the others are answering."""


@dataclass(frozen=True)
class StoreLimits:
    """Limits of the store. Bytes are the memory that an adapter takes in a model. An adapter being added is not
    counted yet.

    Attributes:
        owner_count: adapters of one visitor.
        owner_bytes: of one visitor.
        total_count: adapters of all.
        total_bytes: of all.
    """

    owner_count: int = 2
    owner_bytes: int = 1024**3
    total_count: int = 16
    total_bytes: int = 4 * 1024**3


@dataclass(frozen=True)
class StoredAdapter:
    """An adapter in the store.

    Attributes:
        key: unique in this process, and fit for the adapter's name in a model.
        owner: whose it is.
        adapter: the adapter.
    """

    key: str
    owner: str
    adapter: Adapter


@dataclass
class _State:
    held: StoredAdapter
    users: int = 0
    dropped: bool = False
    # Being removed to make room; dropped once the new adapter has been added.
    going: bool = False


class AdapterStore:
    """Holds visitors' adapters; safe to use from several threads.

    An adapter is never freed while an answer is being written with it: one that is removed meanwhile is freed when the
    answer has ended.

    Args:
        limits: how much is held.
        free: called with each adapter that is dropped, before its files are deleted and with no lock held; it detaches
            the adapter from the model.
    """

    def __init__(
        self, limits: StoreLimits | None = None, free: Callable[[StoredAdapter], None] = lambda stored: None
    ) -> None:
        self.limits = limits or StoreLimits()
        self._free = free
        self._lock = threading.Lock()
        # The least recently used first.
        self._states: OrderedDict[str, _State] = OrderedDict()
        self._notices: dict[str, list[str]] = {}
        self._numbers = itertools.count(1)

    def add(
        self, owner: str, adapter: Adapter, attach: Callable[[StoredAdapter], None] = lambda stored: None
    ) -> StoredAdapter:
        """Add an adapter, then drop others if there is not enough memory.

        Args:
            owner: whose it is.
            adapter: the adapter.
            attach: puts it on the model, with no lock held. What it raises is passed on: then no other adapter is
                removed, and this one is freed.

        Raises:
            AdapterError: if it is larger than the limit; NoRoomError if every adapter that could be dropped is in use.
                It then still belongs to the caller.
        """
        self._check_alone(adapter)
        with self._lock:
            owned = [s for s in self._present() if s.held.owner == owner and not s.going]
            from_owner = self._to_drop(owned, adapter, self.limits.owner_count, self.limits.owner_bytes)
            # Including removed adapters that are still in use: they take memory until their answer ends.
            rest = [s for s in self._states.values() if s not in from_owner and not s.going]
            from_others = self._to_drop(rest, adapter, self.limits.total_count, self.limits.total_bytes)
            for state in from_owner + from_others:
                state.going = True
            stored = StoredAdapter(f"visitor-{next(self._numbers)}", owner, adapter)
            # Marked as used while it is being added, so that another new adapter does not evict it.
            new = self._states[stored.key] = _State(stored, users=1)
        try:
            attach(stored)
        except BaseException:
            self._give_up(new, from_owner + from_others)
            raise
        self._arrive(new, from_owner, from_others)
        return stored

    def _give_up(self, new: _State, going: list[_State]) -> None:
        with self._lock:
            for state in going:
                state.going = False
            new.dropped = True
            freed = self._end_use(new)
        self._release(freed)

    def _arrive(self, new: _State, from_owner: list[_State], from_others: list[_State]) -> None:
        with self._lock:
            for state in from_owner + from_others:
                state.going = False
            # If its owner left meanwhile, it needs no memory.
            leaving = [] if new.dropped else [state for state in from_owner + from_others if not state.dropped]
            for state in leaving:
                self._notify(state, OWN_NEW if state in from_owner else OTHERS_NEW)
            freed = [self._drop(state) for state in leaving] + self._end_use(new)
        self._release(freed)

    @contextmanager
    def use(self, key: str) -> Iterator[Adapter]:
        """The adapter, kept while the context is open, and counted as used now.

        Raises:
            AdapterError: if it is not there any more.
        """
        with self._lock:
            state = self._states.get(key)
            if state is None or state.dropped:
                raise AdapterError("This adapter was removed; add it again.")
            state.users += 1
            self._states.move_to_end(key)
        try:
            yield state.held.adapter
        finally:
            with self._lock:
                freed = self._end_use(state)
            self._release(freed)

    def of(self, owner: str) -> tuple[StoredAdapter, ...]:
        """A visitor's adapters, least recently used first."""
        with self._lock:
            return tuple(state.held for state in self._present() if state.held.owner == owner)

    def all(self) -> tuple[StoredAdapter, ...]:
        """Everybody's adapters."""
        with self._lock:
            return tuple(state.held for state in self._present())

    def delete_files(self) -> None:
        """Delete all files when the process ends. The adapters are not detached, since the model goes too."""
        for stored in self.all():
            stored.adapter.delete()

    def remove(self, key: str) -> None:
        """Drop an adapter; does nothing if it is already gone."""
        with self._lock:
            state = self._states.get(key)
            freed = [] if state is None or state.dropped else [self._drop(state)]
        self._release(freed)

    def clear(self, why: str) -> None:
        """Drop everything. `why` completes the sentence that the owners see."""
        with self._lock:
            all_of_them = self._present()
            for state in all_of_them:
                self._notify(state, why)
            freed = [self._drop(state) for state in all_of_them]
        self._release(freed)

    def leave(self, owner: str) -> None:
        """Remove a visitor's adapters, files and notices."""
        with self._lock:
            owned = [state for state in self._present() if state.held.owner == owner]
            freed = [self._drop(state) for state in owned]
            self._notices.pop(owner, None)
        self._release(freed)

    def notices(self, owner: str) -> tuple[str, ...]:
        """Sentences about this visitor's adapters that were dropped to free memory; each is returned once."""
        with self._lock:
            return tuple(self._notices.pop(owner, ()))

    # -- with the lock held --------------------------------------------------------------------------------------

    def _present(self) -> list[_State]:
        return [state for state in self._states.values() if not state.dropped]

    def _to_drop(self, states: list[_State], adapter: Adapter, count: int, size: int) -> list[_State]:
        """The least recently used of `states` that must be dropped to make room for `adapter`."""
        to_drop: list[_State] = []
        remaining = len(states)
        used = sum(state.held.adapter.row_bytes for state in states)
        for state in states:
            if remaining < count and used + adapter.row_bytes <= size:
                break
            if state.users:
                continue
            to_drop.append(state)
            remaining -= 1
            used -= state.held.adapter.row_bytes
        if remaining >= count or used + adapter.row_bytes > size:
            raise NoRoomError(
                "There is no memory for another adapter while the others are answering; try again when they have "
                "finished."
            )
        return to_drop

    def _notify(self, state: _State, why: str) -> None:
        sentence = f"Your adapter {quoted(state.held.adapter.label)} was removed {why}."
        self._notices.setdefault(state.held.owner, []).append(sentence)

    def _drop(self, state: _State) -> StoredAdapter | None:
        """Drop it; None if an answer still uses it, in which case it is freed when that ends."""
        state.dropped = True
        if state.users:
            return None
        del self._states[state.held.key]
        return state.held

    def _end_use(self, state: _State) -> list[StoredAdapter]:
        """End one use; an adapter dropped in the meantime is freed with its last use."""
        state.users -= 1
        if state.users or not state.dropped:
            return []
        del self._states[state.held.key]
        return [state.held]

    # -- without it ----------------------------------------------------------------------------------------------

    def _check_alone(self, adapter: Adapter) -> None:
        limit = min(self.limits.owner_bytes, self.limits.total_bytes)
        if adapter.row_bytes > limit:
            raise AdapterError(
                f"{quoted(adapter.label)} has {megabytes(adapter.row_bytes)}; there is room for {megabytes(limit)}."
            )

    def _release(self, freed: Sequence[StoredAdapter | None]) -> None:
        with ExitStack() as last:  # every one of them, even if one raises
            for stored in reversed(freed):
                if stored is not None:
                    last.callback(stored.adapter.delete)
                    last.callback(self._free, stored)
