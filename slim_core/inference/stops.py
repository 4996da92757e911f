# SPDX-License-Identifier: Apache-2.0
"""Flags to stop answers from another thread or process."""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
import weakref


class Stops:
    """One flag a row, in memory that threads, forked processes and processes that get a pickled copy share.

    The memory is a small temporary file: an anonymous map would not reach a worker process that was forked earlier
    and is handed its arguments by pickling. The process that made the flags removes the file when it drops them.

    Args:
        rows: how many rows there are.
    """

    def __init__(self, rows: int) -> None:
        handle, path = tempfile.mkstemp(prefix="slim-stops-")
        try:
            os.write(handle, bytes(max(1, rows)))
            self._map = mmap.mmap(handle, max(1, rows))
        finally:
            os.close(handle)
        self._rows, self._path = rows, path
        weakref.finalize(self, _remove, path, os.getpid())

    def stop(self, row: int) -> None:
        """Stop one row.

        Raises:
            IndexError: if there is no such row.
        """
        self._map[self._checked(row)] = 1

    def stop_all(self) -> None:
        """Stop every row."""
        self._map[:] = b"\1" * len(self._map)

    def stopped(self, row: int) -> bool:
        """Whether a row was stopped.

        Raises:
            IndexError: if there is no such row.
        """
        return self._map[self._checked(row)] != 0

    def __len__(self) -> int:
        return self._rows

    def _checked(self, row: int) -> int:
        if not 0 <= row < self._rows:
            raise IndexError(f"There is no row {row}: the flags are for {self._rows} rows.")
        return row

    def __reduce__(self):
        return _reopen, (self._path, self._rows)


def _reopen(path: str, rows: int) -> Stops:
    stops = Stops.__new__(Stops)
    with open(path, "r+b") as file:
        stops._map = mmap.mmap(file.fileno(), max(1, rows))
    stops._rows, stops._path = rows, path
    return stops


def _remove(path: str, owner: int) -> None:
    # A forked copy that is dropped must not take the file from the others.
    if os.getpid() == owner:
        # It may be deleted already, or still mapped on Windows, in which case a few bytes stay in the temporary
        # folder.
        with contextlib.suppress(OSError):
            os.unlink(path)
