# SPDX-License-Identifier: Apache-2.0
"""Whether the files of a checkpoint or adapter are complete and readable, and if not, why, in a few words."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers.trainer_callback import TrainerState
from transformers.trainer_pt_utils import safe_globals

from ..outside.errors import reason


WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
STATE, SUMS = "trainer_state.json", "sha256.json"
# Files that must exist: one of each line. The later names are those of FSDP and DeepSpeed, whose state is split up.
NEEDED = (
    (STATE,),
    (CONFIG,),
    (WEIGHTS, "pytorch_model_fsdp*", "latest"),
    ("optimizer.pt", "optimizer.bin", "optimizer_*", "latest"),
    ("scheduler.pt", "latest"),
    ("rng_state.pth", "rng_state_*.pth"),
)
# What transformers reads from its own state when a run is resumed.
STATE_FIELDS: dict[str, type | tuple[type, ...]] = {
    "global_step": int,
    "max_steps": int,
    "train_batch_size": int,
    "num_train_epochs": int,
    "epoch": (int, float),
    "log_history": list,
    "stateful_callbacks": dict,
}
# Entries that torch files must have, by the beginning of their name.
TORCH_ENTRIES: dict[str, dict[str, type]] = {
    "optimizer": {"state": dict, "param_groups": list},
    "scheduler": {"last_epoch": int, "_step_count": int},
    "rng_state": {"python": tuple, "numpy": tuple, "cpu": torch.Tensor},
}


class _Damage(Exception):
    """The message says which file is damaged and how."""


def checkpoint_damage(folder: Path, step: int) -> str | None:
    """Why a checkpoint cannot be resumed from; None if it is complete.

    Args:
        folder: of the checkpoint.
        step: that it was written after.
    """
    try:
        files = _plain_files(folder)
        for names in NEEDED:
            if not any(True for name in names for _ in folder.glob(name)):
                raise _Damage(f"{names[0]} is missing")
        for path in files:
            _check_file(path, path.relative_to(folder))
        _check_state(folder / STATE, step)
        _check_sums(folder)
    except _Damage as damage:
        return str(damage)
    except OSError as error:
        return f"it cannot be read: {reason(error)}"
    return None


def write_sums(folder: Path) -> None:
    """Store the SHA-256 of each file of a checkpoint, so that changed bytes are noticed.

    Raises:
        OSError: if it cannot be written.
    """
    sums = {path.relative_to(folder).as_posix(): _sha256(path) for path in _walk(folder) if path.is_file()}
    (folder / SUMS).write_text(json.dumps(sums, indent=2) + "\n", encoding="utf-8")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_sums(folder: Path) -> None:
    """Refuse a file that has changed since it was written. Checkpoints of earlier versions have no checksums."""
    if not (folder / SUMS).exists():
        return
    for name, written in read_json(folder / SUMS).items():
        path = folder / name
        if not path.is_file():
            raise _Damage(f"{name} is missing")
        if _sha256(path) != written:
            raise _Damage(f"{name} has changed since it was written")


def adapter_damage(folder: Path) -> str | None:
    """Why an adapter cannot be used; None if its weights and configuration can be opened."""
    try:
        for name in (CONFIG, WEIGHTS):
            if not (folder / name).is_file():
                raise _Damage(f"{name} is missing")
            _check_file(folder / name, Path(name))
    except _Damage as damage:
        return str(damage)
    except OSError as error:
        return f"it cannot be read: {reason(error)}"
    return None


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes in a safetensors file that is known to open."""
    with safe_open(path, framework="pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: if it is none, with why in a few words.
        OSError: if it cannot be read.
    """
    text = path.read_bytes()
    if not text:
        raise ValueError("empty")
    try:
        return json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError):
        raise ValueError("truncated or not JSON") from None


def _plain_files(folder: Path) -> list[Path]:
    """All files of a folder, which must be regular: links may lead out of it, and a pipe would block."""
    if folder.is_symlink():
        raise _Damage("it is a link")
    if not folder.is_dir():
        raise _Damage("it is not a folder")
    files = []
    for path in _walk(folder):
        mode = path.lstat().st_mode
        name = path.relative_to(folder)
        if stat.S_ISLNK(mode):
            raise _Damage(f"{name} is a link")
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise _Damage(f"{name} is not a file")
        if stat.S_ISREG(mode):
            files.append(path)
    return files


def _walk(folder: Path) -> Iterator[Path]:
    # Unlike `rglob`, it raises where a folder cannot be listed.
    for path in sorted(folder.iterdir()):
        yield path
        if path.is_dir() and not path.is_symlink():
            yield from _walk(path)


def _check_file(path: Path, name: Path) -> None:
    check = CHECKS.get(path.suffix)
    # DeepSpeed and FSDP folders contain their own classes, which only they can read.
    if check is None or (len(name.parts) > 1 and path.suffix not in (".json", ".safetensors")):
        return
    if os.path.getsize(path) == 0:
        raise _Damage(f"{name} is empty")
    check(path, name)


def _check_json(path: Path, name: Path) -> None:
    try:
        content = read_json(path)
    except ValueError as error:
        raise _Damage(f"{name} is {error}") from None
    if not isinstance(content, dict):
        raise _Damage(f"{name} holds no object")


def _check_weights(path: Path, name: Path) -> None:
    try:
        shapes = tensor_shapes(path)
    except SafetensorError:
        raise _Damage(f"{name} is truncated or not a safetensors file") from None
    if not shapes:
        raise _Damage(f"{name} holds no weights")
    with safe_open(path, framework="pt") as file:
        if not all(torch.isfinite(file.get_tensor(key)).all() for key in shapes):
            raise _Damage(f"{name} holds numbers that are not finite")


def _check_torch(path: Path, name: Path) -> None:
    with path.open("rb") as file, warnings.catch_warnings(), safe_globals():
        warnings.simplefilter("ignore")
        try:
            # As transformers will read it: tensors and plain values, and no code. It is the run's own file.
            content = torch.load(file, map_location="cpu", weights_only=True)
        except Exception:  # zip, pickle and tensors each have their own
            raise _Damage(f"{name} is truncated or cannot be read safely") from None
    for begin, entries in TORCH_ENTRIES.items():
        if not path.name.startswith(begin) or path.suffix == ".bin":
            continue
        for entry, kind in entries.items():
            if not isinstance(content, dict) or not isinstance(content.get(entry), kind):
                raise _Damage(f"{name} has no {entry}")


CHECKS: dict[str, Callable[[Path, Path], None]] = {
    ".json": _check_json,
    ".safetensors": _check_weights,
    ".pt": _check_torch,
    ".pth": _check_torch,
    ".bin": _check_torch,
}


def _check_state(path: Path, step: int) -> None:
    """Refuse a state that lacks a field we read, or belongs to another step."""
    content = read_json(path)
    for field, kind in STATE_FIELDS.items():
        if not isinstance(content.get(field), kind) or isinstance(content[field], bool):
            raise _Damage(f"{STATE} has no {field}")
    if content["global_step"] != step:
        raise _Damage(f"{STATE} is of step {content['global_step']}")
    if not all(isinstance(entry, dict) for entry in content["log_history"]):
        raise _Damage(f"{STATE} has no log_history")
    try:
        TrainerState.load_from_json(str(path))
    except Exception:  # a field that this version does not know, or callbacks of another shape
        raise _Damage(f"{STATE} is not what this version of transformers writes") from None
