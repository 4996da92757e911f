# SPDX-License-Identifier: Apache-2.0
"""The choice of a base model and how it is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .errors import EngineError
from .estimate import Bits


DEMO_NAME = "SLIM demo"


@dataclass(frozen=True)
class BaseChoice:
    """A base model, and how it is loaded.

    Attributes:
        base: its folder or Hub id.
        revision: branch, tag or commit on the Hub; None for the main branch.
        bits: 4 or 8 for its Linears; None for none.
        name: what people call it; None for its folder or Hub id.
        lora: folder or Hub id of a LoRA that belongs to it.
        slim: of a SLIM adapter.
        operator: whether the operator named it. A visitor's is only ever a Hub id, and is fetched without
            any token into a folder that goes when the model is loaded.
        endpoint: another Hub than the configured one.
    """

    base: str
    revision: str | None = None
    bits: Bits = None
    name: str | None = None
    lora: str | None = None
    slim: str | None = None
    operator: bool = True
    endpoint: str | None = None

    @property
    def label(self) -> str:
        """Its display name, without the path of a folder."""
        folder = named_folder(self.base) if self.operator else None
        return self.name or (folder.name if folder is not None else self.base)


def demo_choice(demo: Path, settings: str) -> BaseChoice:
    """The demo's base with its adapters.

    Args:
        demo: the demo's folder.
        settings: with which a person names another base, for the sentence.

    Raises:
        EngineError: if it is not there.
    """
    if not (demo / "base").is_dir():
        raise EngineError(
            f"There is no demo model in {demo}: build it with `python -m slim_core demo build`, or name your own with "
            f"{settings}."
        )
    return BaseChoice(str(demo / "base"), name=DEMO_NAME, lora=str(demo / "lora"), slim=str(demo / "slim"))


def named_folder(name: str) -> Path | None:
    """The existing folder that the operator named; None if there is none."""
    try:
        path = Path(name).expanduser()
        return path if name.strip() and path.is_dir() else None
    except (OSError, RuntimeError):  # too long for a file name, or in the home of an unknown user
        return None
