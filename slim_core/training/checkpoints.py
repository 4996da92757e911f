# SPDX-License-Identifier: Apache-2.0
"""The checkpoints of a run: which are complete, which are damaged and why, and when one is deleted.

Checkpoints are transformers'. Their weights are safetensors; the optimiser's state is a torch file, which transformers
reads with `weights_only`, so that it cannot run code. They are taken from the run's own output folder alone.

transformers writes the files of a checkpoint one after the other into its folder, in several processes at once. Where
one of them is killed, or the disk is full, half of a checkpoint stays behind. So each is read before it is trusted.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .whole_files import STATE, checkpoint_damage


CHECKPOINTS = "checkpoints"
PREFIX = "checkpoint-"
SET_ASIDE = "damaged-"


@dataclass(frozen=True)
class DamagedCheckpoint:
    """A damaged checkpoint.

    Attributes:
        path: its folder.
        why: to stand in brackets.
    """

    path: Path
    why: str

    def __str__(self) -> str:
        return f"{self.path.name} is damaged ({self.why})"


@dataclass(frozen=True)
class Checkpoints:
    """Checkpoints that a run has left behind.

    Attributes:
        intact: complete and undamaged ones, newest first.
        damaged: newest first.
    """

    intact: tuple[Path, ...] = ()
    damaged: tuple[DamagedCheckpoint, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.intact or self.damaged)


def step_of(path: Path) -> int:
    """The optimiser step after which a checkpoint was written."""
    return int(path.name.removeprefix(PREFIX))


def read_checkpoints(folder: Path) -> Checkpoints:
    """Read all checkpoints in the folder of an adapter.

    Raises:
        OSError: if the folder cannot be listed.
    """
    if not os.path.lexists(folder / CHECKPOINTS):
        return Checkpoints()
    entries = sorted(filter(_has_checkpoint_name, (folder / CHECKPOINTS).iterdir()), key=step_of, reverse=True)
    intact, damaged = [], []
    for path in entries:
        damage = checkpoint_damage(path, step_of(path))
        if damage is None:
            intact.append(path)
        else:
            damaged.append(DamagedCheckpoint(path, damage))
    return Checkpoints(tuple(intact), tuple(damaged))


def _has_checkpoint_name(path: Path) -> bool:
    # Other folders, such as checkpoint-20-copy, do not belong to the run.
    digits = path.name.removeprefix(PREFIX)
    return path.name.startswith(PREFIX) and digits.isascii() and digits.isdigit() and str(int(digits)) == digits


def renamed_checkpoint(folder: Path) -> Path | None:
    """An entry of an adapter's folder of checkpoints that is a checkpoint under another name; None if there is none.

    Raises:
        OSError: if the folder cannot be listed.
    """
    if not (folder / CHECKPOINTS).is_dir():
        return None
    others = (path for path in sorted((folder / CHECKPOINTS).iterdir()) if not path.name.startswith((".", SET_ASIDE)))
    return next((path for path in others if (path / STATE).is_file() and not _has_checkpoint_name(path)), None)


def set_aside(damaged: Iterable[DamagedCheckpoint]) -> None:
    """Rename damaged checkpoints, since a resumed run will write checkpoints of the same names.

    Raises:
        OSError: if the system does not let it.
    """
    for checkpoint in damaged:
        name = new = f"{SET_ASIDE}{checkpoint.path.name}"
        number = 1
        while os.path.lexists(checkpoint.path.with_name(new)):
            number += 1
            new = f"{name}-{number}"
        checkpoint.path.rename(checkpoint.path.with_name(new))


class KeepNewest(TrainerCallback):
    """Deletes a run's previous checkpoint once the next one is written, and no others.

    transformers would go by name and date, and delete checkpoints that the run did not write or that it resumes from.

    Args:
        existing: the checkpoints that were there when the run was resumed.
    """

    def __init__(self, existing: Iterable[Path] = ()) -> None:
        self._kept = list(existing)

    @property
    def path(self) -> Path | None:
        """The newest checkpoint; None before the first."""
        return next(iter(self._kept), None)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        assert args.output_dir is not None  # the run names one
        new = Path(args.output_dir) / f"{PREFIX}{state.global_step}"
        # Data that are only in memory would be lost in a power cut, after the previous checkpoint has been deleted.
        _flush_all(new)
        self.delete(but=new)
        self._kept = [new]

    def delete(self, but: Path | None = None) -> None:
        """Delete the checkpoints that the run wrote or resumed from, and the folder if it is then empty."""
        for path in self._kept:
            if path != but:
                shutil.rmtree(path, ignore_errors=True)
                with suppress(OSError):  # something else is in it
                    path.parent.rmdir()
        self._kept = [but] if but is not None else []


def _flush_all(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                flush(file)


def flush(file: BinaryIO) -> None:
    """Wait until a file is on disk. Some file systems report a full disk only then.

    Raises:
        OSError: if it cannot be written there.
    """
    try:
        os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some cannot do this at all
            raise
