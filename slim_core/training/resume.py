# SPDX-License-Identifier: Apache-2.0
"""Resuming a run: what its folder says was done, and the newest usable checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from numbers import Real
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model_state_dict

from ..outside.errors import quoted, reason
from .checkpoints import (
    CHECKPOINTS,
    PREFIX,
    Checkpoints,
    DamagedCheckpoint,
    read_checkpoints,
    renamed_checkpoint,
    step_of,
)
from .errors import TrainingError
from .names import named
from .report import RECORD, TrainingRecord, describe_arguments
from .settings import TrainSettings
from .whole_files import STATE, WEIGHTS, adapter_damage, read_json, tensor_shapes


# Settings that may change when a run is resumed, since they do not affect the result.
FREE = ("output", "resume", "methods", "log_every", "save_every", "report_to")
# Settings that say where something is.
PLACES = ("base", "data", "start_from")
STATUSES = ("running", "interrupted", "finished")
# Fields read from the record of a run that is resumed, or finished and part of the comparison.
NEEDED = ("method", "arguments", "data", "status")
KINDS: dict[str, Any] = {
    "method": str,
    "status": str,
    "arguments": dict,
    "data": dict,
    "steps": int,
    "total_steps": int,
    "trainable_parameters": int,
    "validation_loss_before": Real | None,
    "validation_loss_after": Real | None,
    "seconds": Real,
    "curves": list,
}
ELSEWHERE = "leave --resume out and choose another --output"


@dataclass(frozen=True)
class PreviousRun:
    """State that one method of an earlier run has left behind.

    Attributes:
        record: None if it had not begun.
        checkpoints: to resume from.
    """

    record: TrainingRecord | None = None
    checkpoints: Checkpoints = field(default_factory=Checkpoints)

    @property
    def is_finished(self) -> bool:
        return self.record is not None and self.record.status == "finished"


def read_previous_runs(settings: TrainSettings) -> dict[str, PreviousRun]:
    """What each method has left behind. Read before anything is loaded; changes nothing.

    Raises:
        TrainingError: if there is nothing to resume, or it was made with other settings, or it is too damaged to
            resume from.
    """
    runs = {}
    for method in settings.methods:
        folder = settings.folder(method)
        try:
            runs[method] = _read_one(method, folder, settings)
        except OSError as error:
            raise TrainingError(
                f"The run in {named(folder)} cannot be read: {reason(error)}; restore it, or {ELSEWHERE}."
            ) from None
    if all(earlier.record is None for earlier in runs.values()):
        raise TrainingError(
            f"There is no run to resume in {named(settings.output)} ({RECORD} is missing); name its folder with "
            "--output, or leave --resume out."
        )
    return runs


def _read_one(method: str, folder: Path, settings: TrainSettings) -> PreviousRun:
    record = read_record(folder)
    if record is None:
        _check_not_begun(folder)
        return PreviousRun()
    place = named(folder)
    if record.method != method:
        raise TrainingError(
            f"The run in {place} trained {named(record.method)}, not {method}; pass the same --method, or {ELSEWHERE}."
        )
    if record.status == "finished":
        damage = adapter_damage(folder)
        if damage is not None:
            raise TrainingError(
                f"The run in {place} is finished, but its {damage}; restore that file, or {ELSEWHERE}."
            )
        return PreviousRun(record)
    checkpoints = read_checkpoints(folder)
    if checkpoints:
        _check_same_settings(record, settings)
    if checkpoints.damaged and not checkpoints.intact:
        raise nothing_whole(folder, checkpoints.damaged)
    if not checkpoints and (other := renamed_checkpoint(folder)) is not None:
        raise TrainingError(
            f"The run in {place} has no checkpoint to resume from but {named(other.name)}, which is not the name of "
            f"one; rename it to {PREFIX}STEP, with the global_step of its {STATE}, or {ELSEWHERE}."
        )
    if not checkpoints and (folder / WEIGHTS).exists():
        raise TrainingError(
            f"The run in {place} was interrupted at step {record.steps} and has no checkpoint to resume from; "
            f"{ELSEWHERE}, so that what it trained is kept."
        )
    return PreviousRun(record, checkpoints)


def _check_not_begun(folder: Path) -> None:
    """Refuse a folder that has content but no record of its run."""
    if not folder.is_dir():
        return
    # A folder for checkpoints, and half a record, are left where a run was killed as it began.
    if read_checkpoints(folder):
        raise TrainingError(
            f"There is no run to resume in {named(folder)}: it has {CHECKPOINTS}, but {RECORD}, which says what was "
            f"trained on what, is missing; restore that file, or {ELSEWHERE}."
        )
    if (folder / WEIGHTS).exists():
        raise TrainingError(
            f"There is no run to resume in {named(folder)}: it has an adapter, but {RECORD} is missing; restore that "
            f"file, or {ELSEWHERE}."
        )


def read_record(folder: Path) -> TrainingRecord | None:
    """The record in a folder; None if it has none.

    Raises:
        TrainingError: if it is damaged.
        OSError: if it cannot be read.
    """
    path = folder / RECORD
    if not path.is_file():
        if path.exists() or path.is_symlink():
            raise _damaged_record(path, "not a file")
        return None
    try:
        content = read_json(path)
    except ValueError as error:
        raise _damaged_record(path, str(error)) from None
    if not isinstance(content, dict):
        raise _damaged_record(path, "not a record of a run")
    content.pop("interrupted", None)
    known = {field.name for field in fields(TrainingRecord)}
    if unknown := sorted(content.keys() - known):
        raise _damaged_record(path, f"of another version, with a field {unknown[0]!r}")
    for name in NEEDED:
        if name not in content:
            raise _damaged_record(path, f"without the field {name!r}")
    for name, value in content.items():
        if not isinstance(value, KINDS.get(name, object)) or isinstance(value, bool):
            raise _damaged_record(path, f"wrong in {name!r}")
    record = TrainingRecord(**content)
    if record.status not in STATUSES:
        raise _damaged_record(path, "wrong in 'status'")
    if not all(isinstance(entry, dict) for entry in record.curves):
        raise _damaged_record(path, "wrong in 'curves'")
    return record


def _damaged_record(path: Path, damage: str) -> TrainingError:
    return TrainingError(
        f"{named(path)} is damaged ({damage}), so the run cannot be resumed; restore that file, or {ELSEWHERE}."
    )


def nothing_whole(folder: Path, damaged: Iterable[DamagedCheckpoint]) -> TrainingError:
    """The error for a run without a usable checkpoint."""
    return TrainingError(
        f"The run in {named(folder)} has no complete checkpoint to resume from: {', '.join(map(str, damaged))}; "
        f"restore one, or {ELSEWHERE}."
    )


def fitting(checkpoints: Checkpoints, model: PeftModel) -> Checkpoints:
    """Treat checkpoints as complete only if they fit this model; the others count as damaged.

    Args:
        checkpoints: as they were read.
        model: what is to be trained.
    """
    expected = {
        name: tuple(tensor.shape)
        for name, tensor in get_peft_model_state_dict(model, save_embedding_layers=False).items()
    }
    intact, damaged = [], list(checkpoints.damaged)
    for path in checkpoints.intact:
        # FSDP and DeepSpeed may keep the weights in pieces, which only they can read.
        saved = tensor_shapes(path / WEIGHTS) if (path / WEIGHTS).exists() else expected
        if saved == expected:
            intact.append(path)
        else:
            damaged.append(DamagedCheckpoint(path, _difference(saved, expected)))
    return Checkpoints(
        tuple(intact), tuple(sorted(damaged, key=lambda checkpoint: step_of(checkpoint.path), reverse=True))
    )


def _difference(saved: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]]) -> str:
    name = next(name for name in sorted(saved.keys() | expected.keys()) if saved.get(name) != expected.get(name))
    if name not in saved:
        return f"{WEIGHTS} has no {name}"
    if name not in expected:
        return f"{WEIGHTS} has {quoted(name, 200)}, which the model does not have"
    return f"{WEIGHTS} has {name} in a different shape"


def _check_same_settings(earlier: TrainingRecord, settings: TrainSettings) -> None:
    now = _as_json(describe_arguments(settings))
    for name, value in now.items():
        # A setting that an earlier version did not have was as it is by default.
        before = earlier.arguments.get(name, _default(name))
        if name not in FREE and before != value:
            raise TrainingError(
                f"The run to resume had {name} = {before!r}, now it is {value!r}; pass the same settings, or "
                f"{ELSEWHERE}."
            )


def _default(name: str) -> Any:
    setting = next(field for field in fields(TrainSettings) if field.name == name)
    value = setting.default if setting.default_factory is MISSING else setting.default_factory()
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)  # as the record holds it
    return None if value is MISSING else _as_json(value)


def anew_if_moved(settings: TrainSettings) -> TrainSettings:
    """For callers that know by their folders' names that base and examples are the same: begin anew, instead of
    refusing to resume, where these were at other paths when the run began.

    Args:
        settings: of one method. If its run has moved, what is in its output is deleted.

    Returns:
        The same settings, or those of a new run.
    """
    earlier = TrainingRecord.load(settings.output) if settings.resume else None
    if earlier is None or earlier.status == "finished":
        return settings
    now = _as_json(describe_arguments(settings))
    if all(earlier.arguments.get(name, now[name]) == now[name] for name in PLACES):
        return settings
    shutil.rmtree(settings.output)
    return replace(settings, resume=False)


def check_same_data(earlier: PreviousRun, now: TrainingRecord) -> None:
    """Refuse to resume with different data.

    Raises:
        TrainingError: if they are not the same.
    """
    if earlier.checkpoints and earlier.record is not None and earlier.record.data != _as_json(now.data):
        raise TrainingError(
            "The data have changed since the run to resume began; restore them, or leave --resume out and choose "
            "another --output."
        )


def going_on(method: str, checkpoints: Checkpoints) -> str:
    """One sentence: where a method resumes, and why not later."""
    if not checkpoints.intact:
        return f"{method} starts from the beginning: no checkpoint was written."
    newest = checkpoints.intact[0]
    passed_over = [str(checkpoint) for checkpoint in checkpoints.damaged if step_of(checkpoint.path) > step_of(newest)]
    return "; ".join([", ".join(passed_over)] * bool(passed_over) + [f"{method} continues from {newest.name}."])


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))
