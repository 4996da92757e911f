# SPDX-License-Identifier: Apache-2.0
"""The header of a safetensors file, read and checked before any tensor."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open

from .errors import AdapterError, SizeError, first_line, megabytes, quoted
from .files import WEIGHTS
from .formats import CONVERT, GGUF
from .limits import Limits
from .strict_json import read_object


class TensorInfo(NamedTuple):
    """The header's entry for one tensor: dtype by safetensors' name (`"F32"`), and shape."""

    dtype: str
    shape: tuple[int, ...]


Header = dict[str, TensorInfo]

PICKLED = f"a Python pickle, which can run code and is never opened; {CONVERT}"
ZIPPED = f"a zip archive or a PyTorch file; neither is opened; {CONVERT}"
# First bytes of files that people rename to safetensors.
OTHER_FORMATS = (
    (b"PK\x03\x04", ZIPPED),
    (b"\x80\x02", PICKLED),
    (b"\x80\x03", PICKLED),
    (b"\x80\x04", PICKLED),
    (b"\x80\x05", PICKLED),
    (b"version https://git-lfs", "a Git LFS pointer; download the file that it stands for"),
    (b"GGUF", f"a GGUF file: {GGUF}"),
    (b"\x89HDF", "an HDF5 file; use the adapter as PEFT saves it"),
    (b"<", "a web page; download the file itself"),
    (b"{", "a JSON file; use the weights"),
)


def read_header(path: Path, limits: Limits) -> Header:
    """Names, dtypes and shapes of the tensors in a file, in the file's order.

    Raises:
        AdapterError: if it is not a valid safetensors file: too short, its header too long, not JSON or with a name
            twice, tensors that overlap, leave gaps, or do not end with the file; or if it holds no tensor.
    """
    try:
        _check_start(path, limits)
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            slices = {name: file.get_slice(name) for name in names}
            header = {name: TensorInfo(s.get_dtype(), tuple(s.get_shape())) for name, s in slices.items()}
    except SafetensorError as error:
        raise AdapterError(f"{WEIGHTS} is not a valid safetensors file: {quoted(first_line(error), 160)}.") from None
    if not header:
        raise AdapterError(f"{WEIGHTS} holds no tensors; save the adapter again.")
    if len(header) > limits.tensors:
        raise SizeError(f"{WEIGHTS} holds {len(header):,} tensors; at most {limits.tensors:,} are allowed.")
    return header


def _check_start(path: Path, limits: Limits) -> None:
    """Check the header's length and its JSON, more strictly than the library, which allows duplicate names."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(32)
        length = int.from_bytes(start[:8], "little")
        if size < 8 or length > size - 8:
            _check_other_formats(start)
            raise AdapterError(
                f"{WEIGHTS} is not a safetensors file or is truncated: it has {megabytes(size)}, but its header alone "
                f"would need {megabytes(length + 8) if size >= 8 else 'eight for its length'}."
            )
        if length > limits.header_bytes:
            raise SizeError(
                f"The header of {WEIGHTS} has {megabytes(length)}; at most {megabytes(limits.header_bytes)} are "
                "allowed."
            )
        file.seek(8)
        read_object(file.read(length), f"The header of {WEIGHTS}", limits.json_depth)


def _check_other_formats(start: bytes) -> None:
    """Say which other format it is. Called if its first bytes are an impossible length for a safetensors header."""
    for first, description in OTHER_FORMATS:
        if start.lstrip().startswith(first):
            raise AdapterError(f"{WEIGHTS} is not safetensors but {description}.")
