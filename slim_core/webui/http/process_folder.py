# SPDX-License-Identifier: Apache-2.0
"""The folder for visitors' uploads, used only by this process."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path

from ...outside.errors import reason
from ..config import ConfigError


VARIABLE = "GRADIO_TEMP_DIR"
OWN = "slim-"
# Bytes that must be free on the disk for the app to start.
ROOM = 1_000_000

_folder: Path | None = None
_lock = threading.Lock()


def process_folder(seconds: float) -> Path:
    """This process's own folder within Gradio's, created at the first call and deleted when the process ends.

    Gradio's folder is the one that GRADIO_TEMP_DIR names, or else one that all Gradio apps of the machine share. What
    a killed process left there is deleted at a later start.

    Args:
        seconds: how long files are kept.

    Raises:
        ConfigError: if nothing can be written there.
    """
    global _folder
    with _lock:
        if _folder is None:
            named = os.environ.get(VARIABLE) or "the folder for temporary files"
            try:
                root = Path(os.environ.get(VARIABLE) or Path(tempfile.gettempdir()) / "gradio").absolute()
                named = str(root)
                _folder = _make(root, seconds)
            except OSError as error:
                raise ConfigError(
                    f"Uploads cannot be written to {named} ({reason(error)}); name a folder that can be written to in "
                    f"{VARIABLE}."
                ) from None
        return _folder


def _make(root: Path, seconds: float) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=OWN, dir=root))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "try").write_bytes(bytes(ROOM))
    (folder / "try").unlink()
    for leftover in root.glob(f"{OWN}*"):
        if leftover != folder and leftover.is_dir() and _newest(leftover) < time.time() - 2 * seconds:
            shutil.rmtree(leftover, ignore_errors=True)
    # Gradio reads it again and again.
    os.environ[VARIABLE] = str(folder)
    return folder


def _newest(folder: Path) -> float:
    try:
        return max(path.lstat().st_mtime for path in (folder, *folder.rglob("*")))
    except OSError:
        return time.time()
