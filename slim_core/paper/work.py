# SPDX-License-Identifier: Apache-2.0
"""The work folder: which trainings and measurements it has, under which names, and who is working on them.

Each name contains a hash of everything that the result depends on, so that no result is ever mistaken for another, and
two experiments with the same cell share it.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..outside.errors import reason
from ..training.report import TrainingRecord
from .runs import Cell, Finish, PaperError
from .scales import Scale, described


# Raised when the same settings no longer give the same result: a default or a method has changed.
VERSION = 2


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:10]


@dataclass(frozen=True)
class CellFiles:
    """Where a cell's files are.

    Attributes:
        data: the training examples.
        before: folder of the adapter that the training goes on from; None for a new one.
        origin: folder of the trained adapter.
        folder: of the adapter that answers: the trained one, or the one that was made from it.
        measured: its answers, compressed JSON.
    """

    data: Path
    before: Path | None
    origin: Path
    folder: Path
    measured: Path

    @property
    def record(self) -> TrainingRecord | None:
        """How it was trained; None if that is not finished."""
        record = TrainingRecord.load(self.origin)
        return record if record is not None and record.status == "finished" else None

    @property
    def is_ready(self) -> bool:
        """Whether its adapter is there, complete."""
        return self.record is not None and (self.folder / "adapter_config.json").is_file()


@dataclass(frozen=True)
class WorkFolder:
    """A folder with everything that was trained and measured.

    Attributes:
        folder: which one.
        scale: on what.
    """

    folder: Path
    scale: Scale

    def files_of(self, cell: Cell) -> CellFiles:
        """Where the files of a cell are."""
        contender = cell.contender
        identity = self.scale.identity(contender.data)
        data = self.folder / "data" / f"{contender.data}-{_hash(identity)}.jsonl"
        # The folder is needed to make settings, but the result does not depend on it.
        settings = described(self.scale.settings(cell, data, self.folder))
        before = None if cell.earlier is None else self.files_of(cell.earlier).folder
        identity = identity if before is None else identity | {"after": before.name}
        name = f"{contender.setup.method}-{cell.rate:g}-{cell.seed}-{_hash([VERSION, identity, settings])}"
        origin = self.folder / "trained" / name
        folder = origin if contender.finish is None else self._finished(origin, contender.finish)
        strength = "" if contender.strength is None else f"-gate-{contender.strength:g}"
        measured = f"{folder.name}{strength}-{_hash(self.scale.asked(contender.part))}.json.gz"
        return CellFiles(data, before, origin, folder, self.folder / "measured" / measured)

    def _finished(self, origin: Path, finish: Finish) -> Path:
        return origin.with_name(f"{origin.name}-{finish.method}-{_hash(asdict(finish))}")

    @contextmanager
    def locked(self, path: Path) -> Iterator[bool]:
        """Whether nobody else is working on a file or folder; as long as the context lasts, nobody will.

        Raises:
            PaperError: if the work folder cannot be written.
        """
        # In a folder of their own, since a training's must be empty when it starts.
        lock = self.folder / "locks" / f"{path.name}.lock"
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            file_lock = FileLock(lock)
            file_lock.acquire(timeout=0)
        except Timeout:
            yield False
            return
        except OSError as error:
            raise PaperError(f"{self.folder} cannot be written: {reason(error)}; name another with --work.") from None
        try:
            yield True
        finally:
            file_lock.release()


def write_json(path: Path, value: Any) -> None:
    """Write a file completely or not at all; compressed if its name ends with ".gz"."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.new")
    content = (json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n").encode()
    # Without a time, so that the same content gives the same file.
    new.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    os.replace(new, path)


def read_measured(path: Path) -> dict[str, Any]:
    """The content of a measurement's file."""
    content: dict[str, Any] = json.loads(gzip.decompress(path.read_bytes()))
    return content
