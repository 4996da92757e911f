# SPDX-License-Identifier: Apache-2.0
"""Visitors' own adapters: in bounded memory, each usable only by its owner, on the shared model."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Any

from ...adapters import Adapter, AdapterError, AdapterStore, BaseShapes, StoredAdapter, StoreLimits
from ...inference import EngineError
from ...inference.measure import measure_of
from ...inference.types import Variant
from ...method import SlimConfig
from ..limits import LimitError
from ..words import base_name
from .session import Session


LOST = "Your adapter “{label}” was removed a minute after its page was closed or lost its connection; add it again."


class VisitorAdapters:
    """Adapters of all visitors on one engine.

    Args:
        engine: the model. Attaching and detaching wait in its queue, so no answer is disturbed.
        limits: how much is held.
        zero_gpu: the model runs elsewhere, in processes that come and go: each job brings its adapters along.
    """

    def __init__(self, engine: Any, limits: StoreLimits | None = None, zero_gpu: bool = False) -> None:
        self._engine, self._zero_gpu = engine, zero_gpu
        reference = weakref.ref(self)  # or the store would keep this alive, and this the store
        self._store = AdapterStore(limits, lambda stored: _detach(reference(), stored))
        # Also when the process ends and there is no model left to wait for.
        weakref.finalize(self, AdapterStore.delete_files, self._store)

    def move(self, engine: Any) -> None:
        """The app has switched its base: drop all adapters and notify their owners."""
        self._engine = engine
        self._store.clear("since the base model was changed")

    @property
    def shapes(self) -> BaseShapes:
        """The shapes an adapter must fit, under a name that may be shown."""
        return replace(self._engine.shapes, name=base_name(self._engine.info))

    @property
    def tried(self) -> bool:
        """Whether an added adapter is tried on the model at once; not if each job brings its own adapters."""
        return not self._zero_gpu

    def add(self, owner: str, adapter: Adapter) -> Variant:
        """Add a visitor's checked adapter and attach it; waits for the model.

        Raises:
            AdapterError: if there is not enough memory. The adapter still belongs to the caller.
            EngineError: if the model cannot carry it. It is deleted, and no other adapter was removed for it.
        """
        carried: list[Variant] = []
        self._store.add(owner, adapter, lambda stored: carried.append(self._carry(stored)))
        return carried[0]

    def _carry(self, stored: StoredAdapter) -> Variant:
        if self._zero_gpu:
            return _variant(stored)
        return self._engine.attach(stored.adapter, name=stored.key, label=stored.adapter.label)

    def keep(self, session: Session) -> tuple[ExitStack, dict[str, Adapter]]:
        """A visitor's adapters, held until the stack is closed, so that none is removed while it is answering.

        Returns:
            The stack, and the adapters by the name of their variant.

        Raises:
            LimitError: if one is gone.
        """
        with ExitStack() as stack:
            try:
                adapters = {
                    v.name: stack.enter_context(self._store.use(v.name)) for v in session.own_variants.values()
                }
            except AdapterError as error:
                raise LimitError(str(error)) from None
            return stack.pop_all(), adapters

    def adapter(self, owner: str, name: str) -> Adapter | None:
        """A visitor's adapter by its variant's name, if it still exists."""
        return next((stored.adapter for stored in self._store.of(owner) if stored.key == name), None)

    def drop_missing(self, session: Session) -> list[str]:
        """Empty the columns whose adapters are gone.

        Returns:
            Sentences for the visitor, each returned once.
        """
        present = {stored.key for stored in self._store.of(session.owner)}
        missing = {column: variant for column, variant in session.own_variants.items() if variant.name not in present}
        session.own_variants = {
            column: variant for column, variant in session.own_variants.items() if column not in missing
        }
        notices = list(self._store.notices(session.owner))
        return notices or [LOST.format(label=variant.label) for variant in missing.values()]

    def remove(self, name: str) -> None:
        """Drop an adapter in a thread, since the model may be busy."""
        _in_background(self._store.remove, name)

    def leave(self, owner: str) -> None:
        """Remove a departed visitor's adapters, files and notices, in a thread."""
        _in_background(self._store.leave, owner)

    def size(self) -> tuple[int, int]:
        """The number of visitors' adapters, and their bytes in the model."""
        stored = self._store.all()
        return len(stored), sum(one_stored.adapter.row_bytes for one_stored in stored)


def _detach(visitor_adapters: VisitorAdapters | None, stored: StoredAdapter) -> None:
    # It is not there if attaching it failed, if each job brings its own, or if this is another base by now.
    if visitor_adapters is not None:
        with suppress(EngineError):
            visitor_adapters._engine.detach(stored.key)


def _variant(stored: StoredAdapter) -> Variant:
    adapter, config = stored.adapter, stored.adapter.config
    slim = config if isinstance(config, SlimConfig) and config.routed else None
    return Variant(
        stored.key,
        adapter.kind,
        adapter.label,
        adapter.parameters,
        adapter.row_bytes,
        adapter.detail,
        slim.yield_strength if slim is not None and slim.yield_mode == "gate" else None,
        None if slim is None else measure_of(slim),
        ends_with=adapter.ends_with,
    )


def _in_background(work: Callable[[str], None], name: str) -> None:
    threading.Thread(target=work, args=(name,), daemon=True).start()
