# SPDX-License-Identifier: Apache-2.0
"""The output folder of a run: whether it may be used, is writable, and has enough space. Checked first."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import takewhile
from pathlib import Path

from ..base.formatting import size
from ..outside.errors import reason
from .checkpoints import CHECKPOINTS, PREFIX, flush
from .errors import TrainingError
from .names import named
from .resume import PreviousRun, read_previous_runs
from .settings import TrainSettings
from .whole_files import WEIGHTS


PROBE = 1 << 16  # bytes: more than a file system keeps beside a file's name
# Adam stores two values per trained weight.
OPTIMISER_STATES = 2
# The last checkpoint is deleted when the next one is whole.
CHECKPOINTS_AT_ONCE = 2


def check_output(settings: TrainSettings) -> dict[str, PreviousRun]:
    """The state of the run to resume, by method; empty for a new run. Nothing is overwritten.

    Raises:
        TrainingError: with what is in the way.
    """
    folder = settings.output
    try:
        # It is written to the record of the run, which is UTF-8.
        str(folder).encode()
        if folder.exists() and not folder.is_dir():
            raise TrainingError(f"--output {named(folder)} is a file; name a folder.")
        if settings.resume:
            return read_previous_runs(settings)
        # A run that was ended before its first file leaves only empty folders.
        if folder.is_dir() and any(not path.is_dir() for path in folder.rglob("*")):
            raise TrainingError(
                f"The folder {named(folder)} is not empty; choose another --output, or pass --resume to continue "
                "its run."
            )
    except (OSError, ValueError) as error:
        raise _cannot_be_written(folder, error) from None
    return {}


def try_output(settings: TrainSettings) -> None:
    """Test that the output can be written: create a file, then remove it and all folders created for it.

    Raises:
        TrainingError: if the system does not let it.
    """
    for method in settings.methods:
        folder = settings.folder(method)
        try:
            absent = _absent(folder)
            try:
                _probe(folder)
            finally:
                _remove_empty(absent)
        except (OSError, ValueError) as error:
            raise _cannot_be_written(folder, error) from None


@contextmanager
def empty_folders_undone(folder: Path) -> Iterator[None]:
    """If the `with` block fails, remove the folders that it created for `folder` and left empty."""
    absent = _absent(folder)
    try:
        yield
    except BaseException:
        _remove_empty(absent)
        raise


def _absent(folder: Path) -> list[Path]:
    """The folders that do not exist yet, deepest first."""
    return list(takewhile(lambda path: not path.is_dir(), (folder, *folder.parents)))


def _remove_empty(folders: list[Path]) -> None:
    for path in folders:
        with suppress(OSError):  # somebody may have put something there meanwhile
            path.rmdir()


def _probe(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    # As deep as the run will write: the folder's name may be short enough but those of its files too long.
    with tempfile.TemporaryDirectory(prefix=".probe-", dir=folder) as aside:
        deepest = Path(aside) / CHECKPOINTS / f"{PREFIX}1000000"
        deepest.mkdir(parents=True)
        with (deepest / f"{WEIGHTS}.new").open("wb") as file:
            file.write(bytes(PROBE))
            file.flush()
            flush(file)
        (deepest / f"{WEIGHTS}.new").rename(deepest / WEIGHTS)
    if os.path.lexists(folder / CHECKPOINTS) and not (folder / CHECKPOINTS).is_dir():
        raise FileExistsError(0, f"{CHECKPOINTS} in it is a file")


def _cannot_be_written(folder: Path, error: OSError | ValueError) -> TrainingError:
    cause = reason(error) if isinstance(error, OSError) else str(error)
    if isinstance(error, UnicodeError):
        cause = "its name is not UTF-8"
    with suppress(OSError, ValueError):
        existing = next((path for path in (folder, *folder.parents) if os.path.lexists(path)), folder)
        if os.path.exists(existing) and not existing.is_dir():
            cause = f"{named(existing)} is a file"
        elif os.path.islink(existing) and not os.path.exists(existing):
            cause = f"{named(existing)} is a link that leads nowhere"
    return TrainingError(f"--output {named(folder)} cannot be written: {cause}; name a writable folder.")


def check_space(settings: TrainSettings, sizes: Sequence[int | None]) -> None:
    """Compare the free disk space with what adapters and checkpoints will need.

    Args:
        settings: the run.
        sizes: bytes of each adapter still to be trained; None if unknown.

    Raises:
        TrainingError: if it is not enough.
    """
    known = [needed for needed in sizes if needed is not None]
    free = _free_bytes(settings.output)
    if len(known) < len(sizes) or free is None or not known:
        return
    one_after_the_other = max((1 + OPTIMISER_STATES) * CHECKPOINTS_AT_ONCE * needed for needed in known)
    need = sum(known) + one_after_the_other
    if free < need:
        raise TrainingError(
            f"There is not enough space in {named(settings.output)}: {size(free)} are free, and the run needs about "
            f"{size(need)}, of which {size(one_after_the_other)} are checkpoints; make space, or choose another "
            "--output."
        )


def _free_bytes(folder: Path) -> int | None:
    """Free space where a folder is or will be; None if the file system does not say."""
    for path in (folder, *folder.absolute().parents):
        with suppress(OSError):
            usage = shutil.disk_usage(path)
            return usage.free if usage.total else None
    return None
