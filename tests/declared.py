# SPDX-License-Identifier: Apache-2.0
"""An environment with what a wheel declares that it needs, and nothing else of what is installed here."""

from __future__ import annotations

import zipfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.metadata import Distribution, PathDistribution, distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def of_wheel(wheel: Path) -> Distribution:
    """The distribution in a wheel that is not installed."""
    (metadata,) = (name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".dist-info/METADATA"))
    return PathDistribution(zipfile.Path(wheel, metadata.removesuffix("METADATA")))


def needed_by(wheel: Path, extras: Iterable[str] = ()) -> dict[str, Distribution]:
    """What `pip install wheel[extras]` would bring besides the wheel, by canonical name, as it is installed here.

    Raises:
        PackageNotFoundError: if some of it is not installed here.
    """
    needed: dict[str, Distribution] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [*requirements(of_wheel(wheel), extras)]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        installed = needed.setdefault(name, distribution(name))
        # "" stands for what it needs without any extra.
        new = {extra for extra in ("", *requirement.extras) if (name, extra) not in seen}
        seen |= {(name, extra) for extra in new}
        if new:
            waiting += requirements(installed, new)
    return needed


def requirements(of: Distribution, extras: Iterable[str]) -> Iterator[Requirement]:
    """What a distribution requires on this machine, with some of its extras."""
    for line in of.requires or ():
        requirement = Requirement(line)
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": e}) for e in ("", *extras)):
            yield requirement


def link(needed: Iterable[Distribution], folder: Path) -> None:
    """Put the files of some installed distributions into a folder of packages, as links."""
    names = {canonicalize_name(of.name) for of in needed}
    for top, files in installed_files().items():
        ours = [(root, path) for name, root, path in files if name in names]
        # A folder that others share, such as a namespace, has only the files of those that are needed.
        whole = len(ours) == len(files)
        for root, path in [(ours[0][0], Path(top))] if whole else ours:
            if (root / path).exists() and not (folder / path).exists():
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).symlink_to(root / path)


@cache
def installed_files() -> dict[str, list[tuple[str, Path, Path]]]:
    """All that is installed here, by its outermost folder: a distribution, where it lies, and a path there."""
    files: dict[str, list[tuple[str, Path, Path]]] = defaultdict(list)
    for of in distributions():
        name, root = canonicalize_name(of.name), Path(str(of.locate_file("")))
        for file in of.files or ():
            if ".." not in file.parts:  # not a command
                files[file.parts[0]].append((name, root, Path(file)))
    return files
