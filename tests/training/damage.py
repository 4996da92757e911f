# SPDX-License-Identifier: Apache-2.0
"""Ways to damage a checkpoint or the record of a run; each takes the folder that the file is in."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def cut(name: str) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size // 2)


def write(name: str, content: bytes | str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def edit(name: str, **changes) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = json.loads((folder / name).read_text()) | changes
        content = {key: value for key, value in content.items() if value is not ...}
        (folder / name).write_text(json.dumps(content))

    return damage


def pickled(name: str, content: object) -> Callable[[Path], None]:
    return lambda folder: torch.save(content, folder / name)


class Evil:
    def __reduce__(self):
        return (os.mkdir, ("/tmp/slim-evil-ran",))


def linked(folder: Path) -> None:
    shutil.move(folder / "optimizer.pt", folder.parent / "elsewhere.pt")
    (folder / "optimizer.pt").symlink_to(folder.parent / "elsewhere.pt")


def linked_whole(folder: Path) -> None:
    folder.rename(folder.parent.parent / "elsewhere")
    folder.symlink_to(folder.parent.parent / "elsewhere")


def a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("x")


def piped(folder: Path) -> None:
    (folder / "scheduler.pt").unlink()
    os.mkfifo(folder / "scheduler.pt")


def other_weights(folder: Path) -> None:
    save_file({"x": torch.zeros(3)}, folder / "adapter_model.safetensors")


def fewer_weights(folder: Path) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors.pop(min(tensors))
    save_file(tensors, folder / "adapter_model.safetensors")


def cut_weights(folder: Path) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({name: t[..., :1].contiguous() for name, t in tensors.items()}, folder / "adapter_model.safetensors")


def flipped(name: str) -> Callable[[Path], None]:
    """One bit of the last byte, which is a number and no structure in a file of weights."""

    def damage(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[-1] ^= 1
        (folder / name).write_bytes(content)

    return damage
