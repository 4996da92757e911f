# SPDX-License-Identifier: Apache-2.0
"""The output folder of a run: whether it may be written, and where a run can go on.

Checkpoints are transformers'. Their weights are safetensors; the optimiser's state is a torch file, which transformers
reads with `weights_only`, so that it cannot run code. They are taken from the run's own output folder alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .errors import TrainingError
from .report import RECORD, TrainingRecord
from .settings import TrainSettings


CHECKPOINTS = "checkpoints"
# Settings that may change when a run goes on: they change no number that is computed.
FREE = ("output", "resume", "methods", "log_every", "save_every", "report_to")
LAST_FILE = "trainer_state.json"  # transformers writes it after all the others


def check_output(settings: TrainSettings) -> None:
    """Refuse to write over anything, and to resume from nothing.

    Raises:
        TrainingError: with what is in the way.
    """
    folder = settings.output
    if folder.exists() and not folder.is_dir():
        raise TrainingError(f"--output {folder} is a file; name a folder.")
    if settings.resume:
        if not any((settings.folder(method) / RECORD).is_file() for method in settings.methods):
            raise TrainingError(
                f"There is no run to resume in {folder} ({RECORD} is missing); name its folder with --output, or "
                "leave --resume out."
            )
        return
    if folder.is_dir() and any(folder.iterdir()):
        raise TrainingError(
            f"The folder {folder} is not empty; choose another --output, pass --resume to go on with its run, or "
            "delete it."
        )


def last_checkpoint(folder: Path, earlier: TrainingRecord | None, now: TrainingRecord) -> Path | None:
    """The last complete checkpoint of a run; None if it was ended before its first.

    Args:
        folder: of the adapter.
        earlier: the record of the run.
        now: the record of what is to be trained now.

    Raises:
        TrainingError: if the settings or the data are not the same.
    """
    found = [path for path in (folder / CHECKPOINTS).glob("checkpoint-*") if _is_complete(path)]
    if earlier is None or not found:
        return None
    _check_same(earlier, now)
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]))


def _is_complete(path: Path) -> bool:
    # A crash may have left half a checkpoint behind. Links may lead out of the run's own folder.
    linked = any(file.is_symlink() for file in [path, *path.rglob("*")])
    return path.name.rpartition("-")[2].isdigit() and (path / LAST_FILE).is_file() and not linked


def _check_same(earlier: TrainingRecord, now: TrainingRecord) -> None:
    before, after = (_as_json(record.arguments) for record in (earlier, now))
    for name, value in after.items():
        if name not in FREE and before.get(name) != value:
            raise TrainingError(
                f"The run to resume had {name} = {before.get(name)!r}, now it is {value!r}; pass the same settings, "
                "or leave --resume out and choose another --output."
            )
    if _as_json(earlier.data) != _as_json(now.data):
        raise TrainingError(
            "The data have changed since the run to resume began; restore them, or leave --resume out and choose "
            "another --output."
        )


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))
