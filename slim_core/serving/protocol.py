# SPDX-License-Identifier: Apache-2.0
"""The interface between a server and the engine behind it: its own, or the app's, which visitors use as well."""

from __future__ import annotations

from collections.abc import Generator, Hashable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Protocol

from ..base.messages import Message
from ..inference.stops import Stops
from ..inference.types import ModelInfo, Row, Sampling, Step, Variant
from .places import Places


class BusyError(Exception):
    """All places are taken. The message is a complete sentence."""


class DescribedEngine(Protocol):
    """What a server needs to know about an engine."""

    info: ModelInfo
    variants: tuple[Variant, ...]

    def count_tokens(self, prompt: Sequence[Message] | str | Sequence[int]) -> int: ...

    def token_texts(self, ids: Sequence[int]) -> tuple[str, ...]: ...


class AnsweringEngine(DescribedEngine, Protocol):
    """What it needs from an engine that it calls itself, such as `slim_core.inference.Engine`."""

    def answer(
        self, rows: Sequence[Row], sampling: Sampling, stops: Stops | None = None, *, visitor: Hashable = None
    ) -> Generator[Step, None, None]: ...


class Service(Protocol):
    """An engine with a limited number of places. Any thread may call any method.

    Attributes:
        max_new_tokens: the maximum length of an answer, in tokens.
    """

    max_new_tokens: int

    @property
    def engine(self) -> DescribedEngine:
        """The engine that answers now; another one after the base was switched."""

    @property
    def models(self) -> dict[str, str]:
        """By the name of each variant that may be asked for, a few words on it; the base first."""

    def use(self, model: str) -> AbstractAsyncContextManager[Variant | None]:
        """The variant of that name, kept while the context is open; None if there is none.

        When it is yielded, it is one of the engine's variants, perhaps under another name there.

        Raises:
            ApiError: if it cannot be had.
        """

    def enter(self, visitor: str | None = None) -> None:
        """Take a place; it must be given back with `leave`. Raises BusyError if there is none.

        Args:
            visitor: who asks; None for one who has no other place.
        """

    def leave(self, visitor: str | None = None) -> None:
        """Give the place back."""

    def answer(
        self, rows: Sequence[Row], sampling: Sampling, stops: Stops, visitor: str | None = None
    ) -> Generator[Step, None, None]:
        """As `Engine.answer`."""


def described(variants: Iterable[Variant]) -> dict[str, str]:
    """For `Service.models`."""
    return {variant.name: " ".join(filter(None, (variant.label, variant.detail))) for variant in variants}


def named(variants: Iterable[Variant], name: str) -> nullcontext[Variant | None]:
    """For `Service.use`, where no variant comes or goes."""
    return nullcontext(next((variant for variant in variants if variant.name == name), None))


class EngineService:
    """An engine that nobody else uses.

    Args:
        engine: the model with its variants.
        places: how many requests are answered or wait in line at once; a quarter more for clients who have none.
        max_new_tokens: the maximum length of an answer, in tokens.
    """

    def __init__(self, engine: AnsweringEngine, places: int, max_new_tokens: int) -> None:
        self.engine = engine
        self.max_new_tokens = max_new_tokens
        self._places = Places(places)

    @property
    def models(self) -> dict[str, str]:
        """All variants of the engine."""
        return described(self.engine.variants)

    def use(self, model: str) -> AbstractAsyncContextManager[Variant | None]:
        """One of them; None if there is none of that name."""
        return named(self.engine.variants, model)

    def enter(self, visitor: str | None = None) -> None:
        """Take a place. Raises BusyError if there is none."""
        if not self._places.take(visitor):
            limit = self._places.limit
            raise BusyError(
                f"{limit} requests are running or queued, and no more can be taken. Try again in a few seconds."
            )

    def leave(self, visitor: str | None = None) -> None:
        """Give the place back."""
        self._places.give_back(visitor)

    def answer(
        self, rows: Sequence[Row], sampling: Sampling, stops: Stops, visitor: str | None = None
    ) -> Generator[Step, None, None]:
        """As `Engine.answer`."""
        return self.engine.answer(rows, sampling, stops, visitor=visitor)
