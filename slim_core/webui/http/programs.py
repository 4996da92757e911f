# SPDX-License-Identifier: Apache-2.0
"""The app's engine for the OpenAI-compatible API. Programs share the places and the queue with visitors."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import cast

from ...inference.stops import Stops
from ...inference.types import Row, Sampling, Step, Variant
from ...serving.protocol import BusyError, described, named
from ..backend import AppEngine, Backend, Job
from ..limits import LimitError


class Programs:
    """A `Service` on the app's backend. Visitors' own adapters are not among its models.

    Args:
        backend: the app's.
        max_new_tokens: the most tokens that an answer may have.
    """

    def __init__(self, backend: Backend, max_new_tokens: int) -> None:
        self._backend = backend
        self.max_new_tokens = max_new_tokens

    @property
    def engine(self) -> AppEngine:
        """The engine that answers now."""
        return self._backend.engine

    @property
    def models(self) -> dict[str, str]:
        """The app's own variants."""
        return described(self._backend.variants)

    def use(self, model: str) -> AbstractAsyncContextManager[Variant | None]:
        """One of them; None if there is none of that name."""
        return named(self._backend.variants, model)

    def enter(self, visitor: str | None = None) -> None:
        """Take one of the app's places. Raises BusyError if there is none."""
        try:
            self._backend.enter(visitor)
        except LimitError as error:
            raise BusyError(str(error)) from None

    def leave(self, visitor: str | None = None) -> None:
        """Give the place back."""
        self._backend.leave(visitor)

    def answer(
        self, rows: Sequence[Row], sampling: Sampling, stops: Stops, visitor: str | None = None
    ) -> Generator[Step, None, None]:
        """As `Engine.answer`."""
        # Nobody reads the base's answer, so there is no drift among the steps.
        return cast(
            "Generator[Step, None, None]", self._backend.run(Job(tuple(rows), sampling, visitor=visitor), stops)
        )
