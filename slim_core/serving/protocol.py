# SPDX-License-Identifier: Apache-2.0
"""The interface between a server and what answers: its own engine, or the app's, sharing places with visitors."""

from __future__ import annotations

import threading
from collections.abc import Generator, Sequence
from typing import Protocol

from ..base.messages import Message
from ..inference.stops import Stops
from ..inference.types import ModelInfo, Row, Sampling, Step, Variant


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
        self, rows: Sequence[Row], sampling: Sampling, stops: Stops | None = None
    ) -> Generator[Step, None, None]: ...


class Service(Protocol):
    """An engine with a limited number of places. Any thread may call any method.

    Attributes:
        max_new_tokens: the most tokens that an answer may have.
    """

    max_new_tokens: int

    @property
    def engine(self) -> DescribedEngine:
        """The engine that answers now; another one after the base was switched."""

    @property
    def variants(self) -> tuple[Variant, ...]:
        """Variants that may be named as a model; the base first."""

    def enter(self) -> None:
        """Take a place; it must be given back with `leave`. Raises BusyError if there is none."""

    def leave(self) -> None:
        """Give the place back."""

    def answer(self, rows: Sequence[Row], sampling: Sampling, stops: Stops) -> Generator[Step, None, None]:
        """As `Engine.answer`."""


class EngineService:
    """An engine that nobody else uses.

    Args:
        engine: the model with its variants.
        places: how many requests are answered or wait in line at once.
        max_new_tokens: the most tokens that an answer may have.
    """

    def __init__(self, engine: AnsweringEngine, places: int, max_new_tokens: int) -> None:
        self.engine = engine
        self.max_new_tokens = max_new_tokens
        self._places, self._count = threading.BoundedSemaphore(places), places

    @property
    def variants(self) -> tuple[Variant, ...]:
        """All of the engine's."""
        return self.engine.variants

    def enter(self) -> None:
        """Take a place. Raises BusyError if there is none."""
        if not self._places.acquire(blocking=False):
            raise BusyError(
                f"{self._count} requests are running or queued, and no more can be taken. Try again in a few seconds."
            )

    def leave(self) -> None:
        """Give the place back."""
        self._places.release()

    def answer(self, rows: Sequence[Row], sampling: Sampling, stops: Stops) -> Generator[Step, None, None]:
        """As `Engine.answer`."""
        return self.engine.answer(rows, sampling, stops)
