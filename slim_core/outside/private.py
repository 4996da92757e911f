# SPDX-License-Identifier: Apache-2.0
"""Private folders, into which adapters are copied before they are read.

Each process has one folder in the folder for temporary files, and in it one for each adapter. A lock in it is held as
long as the process lives, so that another process can tell what is in use from what a killed process left behind.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from .errors import AdapterError, reason


PREFIX = "slim-adapters-"
LOCK = "in-use.lock"
# A folder as young as this may not be locked yet.
YOUNG_SECONDS = 60


class _ProcessFolder(NamedTuple):
    path: Path
    lock: FileLock
    process: int


# By the folder for temporary files, which may change while the process runs.
_folders: dict[str, _ProcessFolder] = {}
_making = threading.Lock()


def private_folder() -> Path:
    """A new folder that nobody else can read.

    Raises:
        AdapterError: if it cannot be created.
    """
    try:
        return Path(tempfile.mkdtemp(dir=_process_folder()))
    except OSError as error:
        raise AdapterError(
            f"The adapter cannot be copied on this machine: {reason(error)}; free some disk space, or set TMPDIR to a "
            "writable folder."
        ) from None


def _process_folder() -> Path:
    root = tempfile.gettempdir()
    with _making:
        folder = _folders.get(root)
        if folder is None or folder.process != os.getpid() or not folder.path.is_dir():
            path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=root))
            lock = FileLock(path / LOCK, thread_local=False)
            lock.acquire(timeout=0)
            folder = _folders[root] = _ProcessFolder(path, lock, os.getpid())
        return folder.path


@atexit.register
def delete_process_folders() -> None:
    """Delete this process's folders with all that is in them; it does so itself when it ends."""
    with _making:
        for folder in _folders.values():
            # A forked process must not delete what its parent uses.
            if folder.process == os.getpid():
                folder.lock.release()
                shutil.rmtree(folder.path, ignore_errors=True)
        _folders.clear()


def sweep_private_folders() -> None:
    """Delete the folders of processes that were killed before they could do it themselves."""
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError, Timeout):
            if path.is_symlink() or path.stat().st_mtime > time.time() - YOUNG_SECONDS:
                continue
            with FileLock(path / LOCK, timeout=0):
                pass
            shutil.rmtree(path, ignore_errors=True)
