# SPDX-License-Identifier: Apache-2.0
"""The records of a task: from files next to it, from a Hub data set, or from a folder with the paper's data sets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...training.errors import DataError
from ...training.files import Record, read_file
from ...training.sources import expand, read_source
from ..errors import EvaluationError
from .local import LAYOUTS


FILES = ("json", "csv", "parquet")
SPLITS = ("test_split", "validation_split", "training_split")


def split_of(config: Mapping[str, Any]) -> str:
    """The split that is solved: test, or else validation, or else training."""
    return next((config[key] for key in SPLITS if config.get(key)), "test")


def records_of(
    config: Mapping[str, Any], split: str, name: str, folder: Path, data_dir: Path | None, revision: str | None = None
) -> list[Record]:
    """The records of a split.

    Args:
        config: of the task.
        split: which one.
        name: of the task file, to name places with.
        folder: that the task file is in, from which its data files are named.
        data_dir: folder with the sets of the paper; None for the Hub.
        revision: version of a Hub data set.

    Raises:
        EvaluationError: if they are not there or cannot be read.
    """
    layout = (config.get("metadata") or {}).get("layout")
    try:
        if data_dir is not None and layout is not None:
            return _of_layout(layout, split, data_dir)
        if config["dataset_path"] in FILES:
            return _of_files(config, split, name, folder)
        source = read_source(config["dataset_path"], split=split, subset=config.get("dataset_name"), revision=revision)
        return source.records
    except DataError as error:
        hint = ""
        if layout in LAYOUTS:
            hint = f" A folder for --data-dir has {LAYOUTS[layout].where}."
        raise EvaluationError(f"{name}: {error}{hint}") from None


def _of_layout(layout: Any, split: str, data_dir: Path) -> list[Record]:
    if layout not in LAYOUTS:
        raise EvaluationError(f"There is no layout {layout!r}; the layouts are {', '.join(LAYOUTS)}.")
    return LAYOUTS[layout].read(data_dir, split)


def _of_files(config: Mapping[str, Any], split: str, name: str, folder: Path) -> list[Record]:
    files = (config.get("dataset_kwargs") or {}).get("data_files")
    if isinstance(files, Mapping):
        if split not in files:
            raise EvaluationError(f"{name}: `data_files` has no {split}, only {', '.join(map(str, files))}.")
        files = files[split]
    named = [files] if isinstance(files, str) else files
    if not isinstance(named, list) or not named or not all(isinstance(file, str) for file in named):
        raise EvaluationError(f"{name}: `dataset_kwargs` must name `data_files`, such as {{test: questions.jsonl}}.")
    records: list[Record] = []
    for file in named:
        candidate = folder / Path(file).expanduser()
        for path in expand(str(candidate)):
            records += read_file(Path(path)).records
    return records
