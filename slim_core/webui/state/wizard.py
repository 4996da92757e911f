# SPDX-License-Identifier: Apache-2.0
"""The checks of a visitor's new adapter, one after another, followed by the page."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any, get_args

from ...adapters import Adapter, AdapterError, Check, HubRepository, Limits, Source, check
from ...adapters.report import Name
from ...inference import EngineError
from ...inference.types import Variant
from ..words import size
from .visitor_adapters import VisitorAdapters


NAMES: tuple[Name, ...] = get_args(Name)
# How often the page looks, in seconds.
INTERVAL = 0.1
WAITING = "Waiting for the model: answers are being written."
UNTRIED = " The GPU is available only while a prompt runs, so the adapter is tried with your first prompt."
FAILED = "The check itself failed; the server's log says why."
log = logging.getLogger(__name__)


class Wizard:
    """One run of the checks in a separate thread; the page only reads its state.

    Args:
        adapters: where the adapter goes.
        owner: whose it is.
        source: where it comes from.
        label: the visitor's name for it; None for the source's own.
        limits: how large it may be.

    Attributes:
        checks: finished checks, in order.
        variant: what is attached, once all are.
    """

    def __init__(
        self, adapters: VisitorAdapters, owner: str, source: Source, label: str | None, limits: Limits
    ) -> None:
        self._stop = threading.Event()
        if isinstance(source, HubRepository):
            source = replace(source, on_progress=self._fetched, stop=self._stop)
        self._adapters, self._owner, self._source, self._label, self._limits = adapters, owner, source, label, limits
        self.checks: list[Check] = []
        self.variant: Variant | None = None
        self._note = ""
        self._lock = threading.Lock()

    def run(self) -> Iterator[None]:
        """Run all checks; each step means that there is something new to draw.

        Closing it means that the visitor has left: the work ends, and its result is discarded.
        """
        worker = threading.Thread(target=self._work, daemon=True)
        worker.start()
        seen: Any = None
        try:
            while worker.is_alive():
                if seen != (seen := (len(self.checks), self._note)):
                    yield
                worker.join(INTERVAL)
            yield
        except GeneratorExit:
            self._leave()
            raise

    def view(self) -> dict[str, Any]:
        """The list of checks as the page draws it."""
        rows = [{"name": c.name, "state": c.state, "sentence": c.sentence} for c in self.checks]
        ended = bool(rows) and (rows[-1]["state"] == "failed" or len(rows) == len(NAMES))
        for name in NAMES[len(rows) :]:
            running = not ended and name == NAMES[len(self.checks)]
            sentence = self._note if running else ""
            rows.append({"name": name, "state": "running" if running else "waiting", "sentence": sentence})
        return {"rows": rows, "ended": ended}

    def _fetched(self, done: int, total: int) -> None:
        self._note = f"{size(done)} of {size(total)} fetched"

    def _work(self) -> None:
        try:
            adapter = self._check()
            if adapter is not None:
                self._attach(adapter)
        except Exception:
            log.exception("checking an adapter failed")
            self._end("failed", FAILED)

    def _check(self) -> Adapter | None:
        with closing(check(self._source, self._adapters.shapes, label=self._label, limits=self._limits)) as running:
            for item in running:
                self._note = ""
                if item.adapter is not None:
                    return item.adapter
                self.checks.append(item)
                if self._stop.is_set():
                    return None
        return None

    def _attach(self, adapter: Adapter) -> None:
        self._note = WAITING
        if self._stop.is_set():
            adapter.delete()
            return
        try:
            variant = self._adapters.add(self._owner, adapter)
        except (AdapterError, EngineError) as error:
            adapter.delete()
            self._end("failed", str(error))
            return
        except BaseException:
            adapter.delete()
            raise
        with self._lock:
            self.variant = variant
            if self._stop.is_set():
                self._adapters.remove(variant.name)
        self._end("passed", f"{adapter.title}, {adapter.detail}.{'' if self._adapters.tried else UNTRIED}")

    def _end(self, state: Any, sentence: str) -> None:
        self._note = ""
        self.checks.append(Check(NAMES[len(self.checks)], state, sentence))

    def _leave(self) -> None:
        with self._lock:
            self._stop.set()
            if self.variant is not None:
                self._adapters.remove(self.variant.name)


def untouched() -> dict[str, Any]:
    """The list of checks before any has run."""
    return {"rows": [{"name": name, "state": "waiting", "sentence": ""} for name in NAMES], "ended": False}
