# SPDX-License-Identifier: Apache-2.0
"""Data sources that users can name: files, patterns, folders, Hub data sets."""

from __future__ import annotations

import glob
from pathlib import Path

from ..extras import lacking
from ..outside.errors import first_line
from .errors import DataError
from .files import ENDINGS, DataSource, Record, kind_of, read_file
from .names import named


def expand(name: str) -> list[str]:
    """The files that match a pattern, sorted; any other name unchanged. A leading ~ is the home folder.

    Raises:
        DataError: if nothing matches the pattern, or there is no such home folder.
    """
    try:
        path = str(Path(name).expanduser()) if name.startswith("~") else name
    except RuntimeError:
        raise DataError(f"{named(name)} names a home folder that does not exist; write the whole path.") from None
    # A name with brackets may be a file's own.
    if not glob.has_magic(path) or Path(path).exists():
        return [path]
    files = sorted(glob.glob(path, recursive=True))
    if not files:
        raise DataError(f"No file matches the pattern {named(name)}; check the path given.")
    return files


def is_file(name: str) -> bool:
    """Whether a name is that of a file, which may be missing, and not of a folder or a data set."""
    path = Path(name)
    return path.is_file() or (kind_of(path) is not None and not path.is_dir())


def read_source(name: str, *, split: str, subset: str | None, revision: str | None) -> DataSource:
    """Read a file, a folder that holds a data set, or a data set of the Hub.

    Args:
        name: path or Hub id.
        split: which split of a data set.
        subset: which configuration of a data set.
        revision: which version of a Hub data set: branch, tag or commit.

    Raises:
        DataError: if there is nothing to read under that name.
    """
    path = Path(name)
    if is_file(name):
        return read_file(path)
    if not path.is_dir() and (name.count("/") > 1 or name.startswith((".", "/", "~"))):
        raise DataError(f"There is no file {named(name)}; data files end in {ENDINGS}.")
    return _read_dataset(name, split, subset, revision)


def _read_dataset(name: str, split: str, subset: str | None, revision: str | None) -> DataSource:
    if sentence := lacking("datasets", f"The data set {name}"):
        raise DataError(sentence)
    # Slow to import, and files do not need it.
    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()  # they would be mixed with the run's own output

    try:
        # `datasets` runs no code of a data set since version 4.
        dataset = load_dataset(name, subset, split=split, revision=revision)
    except Exception as error:  # `datasets` raises a dozen kinds of errors
        raise DataError(_not_loaded(name, split, error)) from None
    if not len(dataset):
        raise DataError(f"The split {split} of {name} is empty; name another with --split.")
    shown = named(Path(name).name if Path(name).is_dir() else name)
    records = [Record(dict(row), f"{shown}, {split} record {i}") for i, row in enumerate(dataset, 1)]
    fingerprint = {"fingerprint": dataset._fingerprint, "revision": revision, "split": split, "subset": subset}
    return DataSource(f"{shown}:{split}", records, 0, fingerprint)


def _not_loaded(name: str, split: str, error: Exception) -> str:
    cause = first_line(error)
    if Path(name).is_dir():
        return (
            f"The folder {named(name)} cannot be loaded as a data set: {cause}; give a data file, or another --split."
        )
    if _unreachable(error):
        return (
            f"The Hub could not be reached for the data set {name} ({cause}); try again with a connection, or give a "
            "data file."
        )
    if type(error).__name__ in ("DatasetNotFoundError", "RepositoryNotFoundError"):
        return (
            f"There is no data set {name} on the Hub that you may read ({cause}); check the id, log in with `hf auth "
            "login` if it is private or gated, or give a data file."
        )
    return (
        f"The data set {name} (split {split}) cannot be loaded: {cause}; give another --split or --subset, or a data "
        "file."
    )


def _unreachable(error: BaseException | None) -> bool:
    """Whether the network is the cause of an error or of the errors behind it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        kinds = {kind.__name__ for kind in type(error).__mro__}
        # requests and httpx have kinds of their own, and neither is imported for this.
        if kinds & {"ConnectionError", "ConnectError", "TimeoutException", "TimeoutError", "OfflineModeIsEnabled"}:
            return True
        error = error.__cause__ or error.__context__
    return False
