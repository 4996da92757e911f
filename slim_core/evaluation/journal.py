# SPDX-License-Identifier: Apache-2.0
"""The journal of finished work, kept on disk so that an interrupted evaluation can be resumed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, TextIO

from ..outside.errors import reason
from .errors import EvaluationError
from .solving import Sample


FORMAT = "slim-evaluation-journal"


class Journal:
    """Finished units, one per line. An incomplete last line, as after a power cut, is ignored.

    Args:
        path: of the file.
        fingerprint: of everything that decides about the samples.
        resume: whether to continue an existing file.

    Attributes:
        done: samples of the finished units, by task and number of the unit.

    Raises:
        EvaluationError: if it cannot be read or written, exists without `resume`, or is of another evaluation.
    """

    def __init__(self, path: Path, fingerprint: str, resume: bool) -> None:
        self.path = path
        self.done: dict[tuple[str, int], list[Sample]] = {}
        try:
            complete_bytes = self._read(fingerprint, resume) if path.exists() else 0
            self._file: TextIO = path.open("r+" if complete_bytes else "w", encoding="utf-8", newline="\n")
            if complete_bytes:
                # Anything after the last complete line is incomplete.
                os.truncate(path, complete_bytes)
                self._file.seek(complete_bytes)
            else:
                self._write({"format": FORMAT, "fingerprint": fingerprint})
        except OSError as error:
            raise EvaluationError(
                f"{path} cannot be written: {reason(error)}; name another file with --output."
            ) from None

    def _read(self, fingerprint: str, resume: bool) -> int:
        """Read finished units. Returns the bytes of all complete lines."""
        if not resume:
            raise EvaluationError(
                f"{self.path} is from an evaluation that was interrupted; continue it with --resume, or delete it."
            )
        content = self.path.read_bytes()
        lines = content[: content.rfind(b"\n") + 1].splitlines(keepends=True)
        complete_bytes = 0
        for number, line in enumerate(lines):
            try:
                entry = json.loads(line)
            except ValueError:
                break
            if number == 0:
                if entry.get("format") != FORMAT:
                    raise EvaluationError(f"{self.path} is not a journal of an evaluation; name another --output.")
                if entry["fingerprint"] != fingerprint:
                    raise EvaluationError(
                        f"{self.path} is from an evaluation of other adapters, tasks or settings; continue with "
                        "those, or delete it."
                    )
            else:
                self.done[entry["task"], entry["unit"]] = entry["samples"]
            complete_bytes += len(line)
        return complete_bytes

    def add(self, task: str, unit: int, samples: list[Sample]) -> None:
        """Record a finished unit; it is on disk when this returns.

        Raises:
            EvaluationError: if it cannot be written.
        """
        try:
            self._write({"task": task, "unit": unit, "samples": samples})
        except OSError as error:
            raise EvaluationError(f"{self.path} cannot be written: {reason(error)}; free some disk space.") from None
        # In the form in which it will be read again, so that resumed and uninterrupted runs give the same result.
        self.done[task, unit] = json.loads(json.dumps(samples))

    def _write(self, value: Any) -> None:
        self._file.write(json.dumps(value, ensure_ascii=False) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file without deleting it."""
        self._file.close()

    def delete(self) -> None:
        """Delete the journal once the results are in their own file."""
        self.close()
        self.path.unlink(missing_ok=True)
