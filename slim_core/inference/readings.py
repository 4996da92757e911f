# SPDX-License-Identifier: Apache-2.0
"""Readings of the base's answers for their drift: several callers' in one batch, one forward at a time."""

from __future__ import annotations

from collections.abc import Collection, Generator
from contextlib import AbstractContextManager

from transformers import PreTrainedModel

from ..base.errors import is_failure
from ..peft_tools import RowScopes
from .draft import Work
from .drift import DriftTensors, read_answers
from .groups import in_groups


class Readings:
    """The works that wait for a reading, and those whose answers are being read now.

    Args:
        lock: under which works change.
        together: whether several may be read in one batch, which needs a model that takes padding.
    """

    def __init__(self, lock: AbstractContextManager, together: bool) -> None:
        self._lock, self._together = lock, together
        self._waiting: list[Work] = []
        self._now: list[Work] = []
        self._steps: Generator[None, None, list[DriftTensors | None]] | None = None
        # How many are read one by one, because reading them in one batch has failed.
        self._alone = 0

    def __bool__(self) -> bool:
        return bool(self._waiting or self._now)

    def add(self, work: Work) -> None:
        """Queue the work's answer for reading; the caller has the lock."""
        self._waiting.append(work)

    def tidy(self, works: Collection[Work]) -> None:
        """Drop works that have left. No forward is running, and the caller has the lock."""
        self._waiting = [work for work in self._waiting if work in works]
        if not any(work in works for work in self._now):
            self._now, self._steps = [], None

    def step(self, model: PreTrainedModel, scopes: RowScopes, works: Collection[Work]) -> None:
        """One forward."""
        if self._steps is None:
            with self._lock:
                self._choose(works)
            readings = [work.reading for work in self._now if work.reading is not None]
            if not readings:
                return
            self._steps = read_answers(model, scopes, readings)
        failure: BaseException | None = None
        drifts: list[DriftTensors | None] = [None for _ in self._now]
        try:
            next(self._steps)
            return
        except StopIteration as ended:
            drifts = ended.value
        except BaseException as error:
            if not is_failure(error):
                self._again()
                raise
            failure = error
        if failure is not None and len(self._now) > 1:
            self._alone = len(self._now)
            self._again()
            return
        with self._lock:
            for work, drift in zip(self._now, drifts, strict=True):
                work.failure, work.drift = failure, drift
                work.reading, work.changed = None, True
        self._now, self._steps = [], None

    def _choose(self, works: Collection[Work]) -> None:
        self._waiting = [work for work in self._waiting if work in works]
        self._now = next(in_groups(self._waiting, _lengths), [])
        if not self._together or self._alone:
            self._now = self._waiting[:1]
            self._alone = max(0, self._alone - 1)
        self._waiting = [work for work in self._waiting if work not in self._now]

    def _again(self) -> None:
        """Read them again from the beginning."""
        with self._lock:
            self._waiting = [*self._now, *self._waiting]
            self._now, self._steps = [], None


def _lengths(work: Work) -> list[int]:
    return [work.reading.length for _ in work.reading.rows] if work.reading is not None else [0]
