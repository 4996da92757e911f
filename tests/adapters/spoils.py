# SPDX-License-Identifier: Apache-2.0
"""Ways to spoil the files of a good adapter."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from tests.adapters.small import Spoil, tensors


def write(name: str, data: bytes):
    return lambda folder: (folder / name).write_bytes(data)


def remove(name: str):
    return lambda folder: (folder / name).unlink()


def rename(old: str, new: str):
    return lambda folder: (folder / old).rename(folder / new)


def link(name: str, target: str):
    def spoil(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(target)

    return spoil


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("../../evil.py", "print('x')")
    return buffer.getvalue()


def fill(value: float):
    return lambda t: torch.full_like(t, value)


def retype(dtype: torch.dtype):
    return lambda t: t.to(dtype)


def first(change):
    """Change the header's first tensor."""

    def spoil(header):
        name = next(key for key in header if key != "__metadata__")
        return header | {name: header[name] | change}

    return spoil


def renamed(old: str, new: str):
    return tensors(lambda saved: {key.replace(old, new): t for key, t in saved.items()})


def together(*spoils: Spoil) -> Spoil:
    """One after the other."""

    def spoil(folder: Path) -> None:
        for each in spoils:
            each(folder)

    return spoil


def added(name: str, tensor: Tensor) -> Spoil:
    return tensors(lambda saved: saved | {f"base_model.model.{name}": tensor})
