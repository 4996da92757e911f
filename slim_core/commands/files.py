# SPDX-License-Identifier: Apache-2.0
"""How commands write files."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from ..base.errors import EngineError
from ..outside.errors import printable, reason


def write_whole(path: Path, text: str) -> None:
    """Replace the file in one step: anyone who reads it meanwhile gets the complete old one.

    Raises:
        EngineError: if it cannot be written.
    """
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        try:
            with open(handle, "w", encoding="utf-8", newline="") as file:
                file.write(text)
            # With the permissions the file would have had without the temporary one.
            mask = os.umask(0)
            os.umask(mask)
            os.chmod(temporary, 0o666 & ~mask)
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise
    except OSError as error:
        raise EngineError(f"{printable(str(path))} cannot be written: {reason(error)}.") from None
