# SPDX-License-Identifier: Apache-2.0
"""Files from outside, copied under fixed names into a private folder before anything reads them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from .errors import AdapterError, SizeError, megabytes, quoted, reason
from .formats import CONFIG, WEIGHTS, check_file_names, conversion, pickle_among
from .limits import Limits
from .record import RECORD, RECORD_BYTES


CHUNK = 1 << 20


class Source(Protocol):
    """Where an adapter comes from: an upload, a folder, the Hub."""

    @property
    def label(self) -> str:
        """A display name, used if the visitor gives none."""

    def copy_to(self, folder: Path, limits: Limits) -> None:
        """Put `CONFIG` and `WEIGHTS` into `folder`, and `RECORD` where there is one.

        Raises:
            AdapterError: if one of them is missing, too large, empty, or no regular file.
        """


class UploadedFile(NamedTuple):
    """One uploaded file: its name on the visitor's machine, used only for comparison, and its path here."""

    name: str
    path: Path


@dataclass(frozen=True)
class Upload:
    """Files of an adapter's folder, in any order; unneeded files are never opened."""

    files: tuple[UploadedFile, ...]
    label: str = "uploaded adapter"

    @classmethod
    def of(cls, paths: Iterable[str | os.PathLike]) -> Upload:
        """Files under the names they were uploaded with."""
        return cls(tuple(UploadedFile(os.fspath(path), Path(path)) for path in paths))

    def copy_to(self, folder: Path, limits: Limits) -> None:
        _check_names(self.files)
        check_file_names(_last_part(file.name) for file in self.files)
        _copy(_choose(self.files, CONFIG, ".json"), folder / CONFIG, limits.config_bytes)
        _copy(_choose(self.files, WEIGHTS, ".safetensors"), folder / WEIGHTS, limits.weights_bytes)
        for file in self.files:
            if _last_part(file.name) == RECORD:
                with suppress(AdapterError):  # the record is optional
                    _copy(file, folder / RECORD, RECORD_BYTES)


@dataclass(frozen=True)
class Folder:
    """A folder on this machine, named by the operator, never by a visitor."""

    path: Path

    @property
    def label(self) -> str:
        return self.path.name or "adapter"

    def copy_to(self, folder: Path, limits: Limits) -> None:
        named = quoted(str(self.path), 200)
        try:
            if not self.path.is_dir():
                raise AdapterError(f"There is no folder {named}.")
            paths = [path for path in sorted(self.path.iterdir()) if not path.is_dir()]
            if not any(_last_part(path.name).endswith(".json") for path in paths):
                self._look_below()
        except OSError as error:
            raise AdapterError(
                f"The folder {named} cannot be read: {reason(error)}; name one that you may read."
            ) from None
        Upload(tuple(UploadedFile(str(path), _cached(path)) for path in paths)).copy_to(folder, limits)

    def _look_below(self) -> None:
        """Raises AdapterError if the adapter is in a folder inside this one."""
        inside = [path.parent for pattern in (f"*/{CONFIG}", f"*/*/{CONFIG}") for path in self.path.glob(pattern)]
        if inside:
            content = f"{len(inside)} adapters, such as" if len(inside) > 1 else "an adapter in"
            raise AdapterError(
                f"The folder {quoted(str(self.path), 200)} has no `{CONFIG}` itself but {content} "
                f"{quoted(str(min(inside, key=lambda path: (len(path.parts), path))), 200)}; name that folder."
            )


def _cached(path: Path) -> Path:
    """The file that holds the bytes: in the Hub's cache, snapshots are links to a folder of their contents."""
    target = path.resolve() if path.is_symlink() else path
    # models--OWNER--NAME/snapshots/COMMIT/FILE is a link to models--OWNER--NAME/blobs/HASH.
    repository = path.absolute().parent.parent.parent
    return target if target.parent == repository.resolve() / "blobs" else path


def adapters_in(root: str | Path) -> list[str]:
    """Names of the subfolders that hold an adapter, in a folder that the operator named."""
    return sorted(path.parent.name for path in Path(root).glob(f"*/{CONFIG}"))


def _check_names(files: tuple[UploadedFile, ...]) -> None:
    for file in files:
        if len(file.name) > 4096 or "\0" in file.name:
            raise AdapterError(f"The file name {quoted(file.name)} is too long or holds a null; rename the file.")


def _last_part(name: str) -> str:
    return name.replace("\\", "/").rpartition("/")[2].casefold()


def _choose(files: tuple[UploadedFile, ...], name: str, ending: str) -> UploadedFile:
    """The file of that name, or else the only one with that extension: browsers add " (1)" to a second download."""
    named = [file for file in files if _last_part(file.name) == name]
    alike = named or [file for file in files if _last_part(file.name).endswith(ending)]
    if len(alike) == 1:
        return alike[0]
    if alike:
        raise AdapterError(f"There are {len(alike)} files that could be `{name}`; give exactly one.")
    pickle = pickle_among(_last_part(file.name) for file in files)
    if pickle is not None and name == WEIGHTS:
        raise AdapterError(conversion(pickle))
    raise AdapterError(f"There is no `{name}` among the files; an adapter consists of `{CONFIG}` and `{WEIGHTS}`.")


def _copy(file: UploadedFile, target: Path, limit: int) -> None:
    """Copy a regular file of at most `limit` bytes; later changes to the original do not matter."""
    # Links are not followed, and a pipe does not block.
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    name = target.name
    if file.path.is_symlink():
        raise AdapterError(f"`{name}` is a link; use the file itself.")
    try:
        descriptor = os.open(file.path, flags)
    except (OSError, ValueError):
        raise AdapterError(f"`{name}` cannot be opened; upload it again.") from None
    with os.fdopen(descriptor, "rb") as source:
        info = os.fstat(source.fileno())
        if not stat.S_ISREG(info.st_mode):
            raise AdapterError(f"`{name}` is not a regular file.")
        if info.st_size == 0:
            raise AdapterError(f"`{name}` is empty.")
        check_bytes(name, info.st_size, limit)
        try:
            with open(target, "xb") as out:
                copied = 0
                while chunk := source.read(CHUNK):
                    copied += len(chunk)
                    check_bytes(name, copied, limit)  # the file may be growing
                    out.write(chunk)
        except OSError as error:
            raise AdapterError(
                f"`{name}` cannot be copied: {reason(error)}; make sure that it can be read and that this machine's "
                "disk has free space."
            ) from None


def check_bytes(name: str, size: int, limit: int) -> None:
    """Raises SizeError if a file is larger than allowed."""
    if size > limit:
        raise SizeError(f"`{name}` has {megabytes(size)}; at most {megabytes(limit)} are allowed.")
