# SPDX-License-Identifier: Apache-2.0
"""Where an adapter is that the person who runs the program named."""

from __future__ import annotations

from pathlib import Path

from .errors import AdapterError
from .files import Folder, Source
from .hub import HubRepository


def named_source(name: str | Path, revision: str | None = None) -> Source:
    """A folder if there is one of that name, else a Hub id, fetched with the token of whoever runs this.

    Args:
        name: folder or Hub id. Never what a visitor types: that is a `HubRepository` without a token, or an upload.
        revision: branch, tag or commit on the Hub.

    Raises:
        AdapterError: if it is a file.
    """
    path = Path(name).expanduser()
    if path.is_file():
        raise AdapterError(f"{name} is a file; name the folder that holds the adapter's two files.")
    if path.is_dir() or isinstance(name, Path) or name.startswith((".", "/", "~")):
        return Folder(path)
    return HubRepository(name, revision, operator=True)
