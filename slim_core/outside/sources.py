# SPDX-License-Identifier: Apache-2.0
"""The source of an adapter that the operator named."""

from __future__ import annotations

from pathlib import Path

from .errors import AdapterError, quoted, reason
from .files import Folder, Source
from .hub import HubRepository


def named_source(name: str | Path, revision: str | None = None) -> Source:
    """A folder if one of that name exists, otherwise a Hub id, fetched with the user's own token.

    Args:
        name: folder or Hub id. Never what a visitor types: that is a `HubRepository` without a token, or an upload.
        revision: branch, tag or commit on the Hub.

    Raises:
        AdapterError: if it is empty or a file, or no path can be looked for under that name.
    """
    if not str(name).strip():
        raise AdapterError("The adapter's name is empty; name a folder or a Hub id.")
    try:
        path = Path(name).expanduser()
        is_file, is_folder = path.is_file(), path.is_dir()
    except RuntimeError:  # raised by Python for an unknown user
        raise AdapterError(f"{quoted(str(name))} begins with a user that is not on this machine; check it.") from None
    except OSError as error:
        raise AdapterError(
            f"{quoted(str(name))} cannot be looked up: {reason(error)}; name a folder or a Hub id."
        ) from None
    if is_file:
        raise AdapterError(f"{name} is a file; name the folder that holds the adapter's two files.")
    if is_folder or isinstance(name, Path) or name.startswith((".", "/", "~")):
        if revision is not None:
            raise AdapterError(
                f"{name} is a folder, which has no revision {quoted(revision)}; name a Hub id, or leave the revision "
                "out."
            )
        return Folder(path)
    return HubRepository(name, revision, operator=True)
