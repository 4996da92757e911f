# SPDX-License-Identifier: Apache-2.0
"""Adapters from the operator's folder, attached when a request names them, in bounded memory."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Protocol

import anyio
from anyio.to_thread import run_sync

from ..adapters import (
    OPERATOR,
    Adapter,
    AdapterError,
    AdapterStore,
    BaseShapes,
    Folder,
    NoRoomError,
    StoredAdapter,
    StoreLimits,
    open_adapter,
)
from ..base.errors import EngineError
from ..inference.types import Variant
from ..outside.files import adapters_in
from .errors import ApiError
from .protocol import AnsweringEngine, EngineService, described, named


# All adapters here are the operator's.
OWNER = "operator"
WORDS = "An adapter that is loaded when it is asked for."


class AttachingEngine(AnsweringEngine, Protocol):
    """What is needed from an engine whose adapters come and go."""

    shapes: BaseShapes

    def attach(self, adapter: Adapter, *, name: str, label: str) -> Variant: ...

    def detach(self, name: str) -> None: ...


class AdaptersOnDemand(EngineService):
    """An `EngineService` that also offers a folder of adapters, named by their subfolders.

    An adapter is checked and attached by the first request that names it, which waits until no answer is being
    written. It stays until others need the memory; then the least recently used goes, but never under an answer. A
    request that finds no room waits, and later ones for the folder's adapters wait behind it. While one adapter takes
    another's place, both are in memory.

    Args:
        engine: the model; its variants so far are always there, and hide adapters of the same name.
        folder: has a subfolder for each adapter, named by the operator. It is read again for each request.
        limit: number of adapters from the folder that are attached at once.
        byte_limit: of memory that they take together.
        places: how many requests are answered or wait in line at once.
        max_new_tokens: the maximum length of an answer, in tokens.
    """

    def __init__(
        self, engine: AttachingEngine, folder: Path, limit: int, byte_limit: int, places: int, max_new_tokens: int
    ) -> None:
        super().__init__(engine, places, max_new_tokens)
        self._engine, self._own_variants, self._folder = engine, engine.variants, folder
        self._store = AdapterStore(StoreLimits(limit, byte_limit, limit, byte_limit), self._detach)
        # By the name of its folder, what an adapter is in the engine. A key is never used again.
        self._attached: dict[str, Variant] = {}
        # First come, first served, without a thread that the answers before might need.
        self._turn = anyio.Lock()
        self._ended = anyio.Event()

    @property
    def models(self) -> dict[str, str]:
        """The engine's own variants, and the adapters that are in the folder now."""
        offered = dict.fromkeys(adapters_in(self._folder), WORDS)
        return described(self._own_variants) | {
            name: words for name, words in offered.items() if not self._is_own(name)
        }

    def use(self, model: str) -> AbstractAsyncContextManager[Variant | None]:
        """The variant of that name, attached if it has to be.

        Raises:
            ApiError: if the adapter is refused.
        """
        if self._is_own(model) or model not in adapters_in(self._folder):
            return named(self._own_variants, model)
        return self._from_folder(model)

    @property
    def attached(self) -> tuple[str, ...]:
        """Adapters of the folder that take memory now, the least recently used first."""
        return tuple(stored.adapter.label for stored in self._store.of(OWNER))

    def _is_own(self, name: str) -> bool:
        return any(variant.name == name for variant in self._own_variants)

    @asynccontextmanager
    async def _from_folder(self, name: str) -> AsyncGenerator[Variant, None]:
        stack = ExitStack()
        try:
            async with self._turn:
                variant = self._keep(name, stack) or await self._load(name, stack)
            yield variant
        finally:
            with anyio.CancelScope(shield=True):
                # If it had to make room in the meantime, it is detached only now, which waits for the model.
                await run_sync(stack.close)
            self._ended.set()

    def _keep(self, name: str, stack: ExitStack) -> Variant | None:
        """An attached adapter, which stays until the stack is closed; None if it is not attached."""
        variant = self._attached.get(name)
        if variant is None:
            return None
        try:
            stack.enter_context(self._store.use(variant.name))
        except AdapterError:
            return None
        return variant

    async def _load(self, name: str, stack: ExitStack) -> Variant:
        """Attach an adapter, which stays until the stack is closed."""
        adapter = None
        try:
            adapter = await run_sync(self._opened, name)
            while True:
                self._ended = anyio.Event()
                try:
                    await run_sync(self._store.add, OWNER, adapter, lambda stored: self._attach(name, stored))
                    break
                except NoRoomError:
                    await self._ended.wait()
        except (AdapterError, EngineError) as error:
            raise ApiError(500, f"The adapter {name} cannot be used: {error}") from None
        finally:
            if adapter is not None:
                # The model has its own copy.
                adapter.delete()
        variant = self._keep(name, stack)
        assert variant is not None  # only this task has the turn, and nothing else removes an adapter
        return variant

    def _opened(self, name: str) -> Adapter:
        return open_adapter(Folder(self._folder / name), self._engine.shapes, limits=OPERATOR)

    def _attach(self, name: str, stored: StoredAdapter) -> None:
        self._attached[name] = self._engine.attach(stored.adapter, name=stored.key, label=name)

    def _detach(self, stored: StoredAdapter) -> None:
        # An adapter that could not be attached is not there.
        with suppress(EngineError):
            self._engine.detach(stored.key)
