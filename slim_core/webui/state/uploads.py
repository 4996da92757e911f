# SPDX-License-Identifier: Apache-2.0
"""Files that visitors sent and that lie in Gradio's cache: they are deleted as soon as they are no longer needed."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4


class Uploads:
    """Who sent which file. Gradio stores equal files once, so a file is deleted when its last sender is done."""

    def __init__(self) -> None:
        self._senders: dict[str, set[str]] = {}
        self._lock = threading.Lock()

    def note(self, sender: str, paths: Iterable[str]) -> None:
        """Note that a visitor sent these files."""
        with self._lock:
            for path in paths:
                self._senders.setdefault(path, set()).add(sender)

    @contextmanager
    def reading(self, sender: str, paths: Iterable[str]) -> Iterator[None]:
        """Context in which a visitor's files are read; afterwards they are deleted unless sent again in the
        meantime.
        """
        paths, reader = list(paths), uuid4().hex
        with self._lock:
            for path in paths:
                self._senders.setdefault(path, set()).add(reader)
                self._senders[path].discard(sender)
        try:
            yield
        finally:
            self.drop(reader, paths)

    def drop(self, sender: str, paths: Iterable[str] | None = None) -> None:
        """A visitor no longer needs these files; None means all that they sent."""
        with self._lock:
            for path in list(self._senders) if paths is None else list(paths):
                senders = self._senders.get(path, set())
                senders.discard(sender)
                if path in self._senders and not senders:
                    del self._senders[path]
                    with suppress(OSError):
                        Path(path).unlink()
                        Path(path).parent.rmdir()  # Gradio's folder for this one file
