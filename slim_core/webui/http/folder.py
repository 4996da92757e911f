# SPDX-License-Identifier: Apache-2.0
"""Visitors' uploads: how much space they may take, how long they are kept, and their public names."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from ...outside.errors import megabytes, quoted
from .refusal import Refusal


# What a file's folder on the server is called outside. With slashes in front, as browsers put it into addresses.
OUTSIDE = "/uploads"
NAME = re.compile(rf"{OUTSIDE}/([0-9a-f]{{64}})/([^/\\\0]+)")
# Each file takes at least a block of the disk, and an entry in a folder.
LEAST = 65_536
# A file that is being uploaded grows; one that has not grown for this many seconds was abandoned.
STALLED = 120.0


class FileError(ValueError):
    """A file is not available. The message is one sentence."""


class UploadFolder:
    """The upload folder, its size, and the public names of its files.

    Args:
        path: the folder.
        space: most bytes of all files together; a small one counts as `LEAST`.
        seconds: how long a file is kept.
    """

    def __init__(self, path: Path, space: int, seconds: int) -> None:
        self.path, self.space, self.seconds = path, space, seconds
        self._lock = threading.Lock()
        self._taken = 0

    def take(self, size: int) -> None:
        """Reserve `size` more bytes.

        Raises:
            Refusal: if there is none.
        """
        with self._lock:
            if self._taken + size > self.space:
                # Files may have been used and deleted since it was counted.
                self._taken = self._count()
            if self._taken + size > self.space:
                raise Refusal(
                    429,
                    f"There is no space for more files now: {megabytes(self.space)} is all that visitors' files may "
                    f"take. Try again in {max(1, self.seconds // 60):,} minutes.",
                )
            self._taken += size

    def sweep(self) -> None:
        """Delete files that are too old or incomplete, and count the rest again."""
        now = time.time()
        for path, status in self._files():
            lifetime = self.seconds if path.parent != self.path else min(STALLED, self.seconds)
            if now - status.st_mtime > lifetime:
                with suppress(OSError):
                    path.unlink()
                    if path.parent != self.path:
                        path.parent.rmdir()
        with self._lock:
            self._taken = self._count()

    def hide(self, file: dict[str, Any]) -> dict[str, Any]:
        """Gradio's description of a file, without its path on this machine."""
        return {k: self.outside(v) if k in ("path", "url") and isinstance(v, str) else v for k, v in file.items()}

    def outside(self, text: str) -> str:
        """A path or address without the folder on this machine."""
        return text.replace(str(self.path), OUTSIDE)

    def find(self, file: dict[str, Any]) -> dict[str, Any]:
        """A file that a request names, with its path on this machine.

        Raises:
            FileError: if it was not uploaded here, or is gone.
        """
        # No address: Gradio would fetch it.
        return file | {"path": str(self.inside(file["path"])), "url": None}

    def inside(self, name: str) -> Path:
        """The file with this public name.

        Raises:
            FileError: if there is none.
        """
        match = NAME.fullmatch(name)
        path = self.path / match[1] / match[2] if match and match[2] not in (".", "..") else None
        try:
            if path is not None and path.is_file() and not path.is_symlink():
                return path
        except OSError:  # a name longer than any can be
            pass
        raise FileError(f"There is no uploaded file {quoted(name)}; files are kept only for a while. Choose it again.")

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        for folder, _, names in os.walk(self.path):
            for name in names:
                path = Path(folder) / name
                # It may have been used, and deleted, in the meantime.
                with suppress(OSError):
                    yield path, path.lstat()

    def _count(self) -> int:
        return sum(max(LEAST, status.st_size) for _, status in self._files())
