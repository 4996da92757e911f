# SPDX-License-Identifier: Apache-2.0
"""The bases that visitors may choose from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...base.choice import demo_choice
from ...base.estimate import Bits
from ...base.loading import bits_of
from ...inference import BaseChoice, EngineError
from ..config import Config
from ..limits import LimitError


SETTINGS = "SLIM_BASE, SLIM_LORA and SLIM_SLIM"
# In SLIM_MODELS: every id of the Hub.
ANY = "*"
PRECISIONS: dict[str, Bits] = {"As it is": None, "8-bit": 8, "4-bit": 4}
FIXED_ON_ZERO_GPU = (
    "This Space gets a GPU for each answer only, and the model is put on it when the Space starts. So base and "
    "precision are fixed: they are what SLIM_BASE, SLIM_LOAD_4BIT and SLIM_LOAD_8BIT say."
)
NOT_ALLOWED = "Base and precision are fixed here. Whoever runs this app can allow others with SLIM_MODELS."


@dataclass(frozen=True)
class Choices:
    """The bases and precisions that visitors may choose.

    Attributes:
        bases: by their names; what the app starts with comes first.
        any_id: whether they may name a Hub id of their own.
        fixed: why nothing can be changed; empty where it can.
    """

    bases: Mapping[str, BaseChoice]
    any_id: bool = False
    fixed: str = ""

    def find(self, name: Any, revision: Any, precision: Any) -> BaseChoice:
        """The base that a visitor chose.

        Args:
            name: of a base that is listed, or a Hub id.
            revision: of a Hub id; empty for the main branch.
            precision: one of `PRECISIONS`.

        Raises:
            LimitError: if it is not allowed.
        """
        if self.fixed:
            raise LimitError(self.fixed)
        if precision not in PRECISIONS:
            raise LimitError(f"Precision must be one of {', '.join(PRECISIONS)}.")
        name = name.strip() if isinstance(name, str) else ""
        wanted_revision = revision.strip() if isinstance(revision, str) else ""
        if name in self.bases and wanted_revision in ("", self.bases[name].revision):
            return replace(self.bases[name], bits=PRECISIONS[precision])
        if name in self.bases and not self.any_id:
            raise LimitError(f"{name} is offered as it is; leave the revision empty.")
        if not name or not self.any_id:
            other = ", or name a Hub id such as Qwen/Qwen3-0.6B" if self.any_id else ""
            raise LimitError(f"Choose one of these: {', '.join(self.bases)}{other}.")
        # Whether it is an id at all is checked before the Hub is asked, which gets no token.
        return BaseChoice(name, wanted_revision or None, PRECISIONS[precision], operator=False)


def first_choice(config: Config, demo: Path) -> BaseChoice:
    """The base the app starts with: from the settings, or the demo.

    Raises:
        EngineError: if there is neither.
    """
    bits = bits_of(config.load_4bit, config.load_8bit)
    if config.base:
        return BaseChoice(
            config.base, config.revision or None, bits, lora=config.lora or None, slim=config.slim or None
        )
    return replace(demo_choice(demo, SETTINGS), bits=bits)


def choices_of(config: Config, demo: Path, zero_gpu: bool = False) -> Choices:
    """What visitors may choose according to the app's settings."""
    first = first_choice(config, demo)
    offered = [first]
    words = [word for word in re.split(r"[,\s]+", config.models) if word]
    if words:
        with suppress(EngineError):
            offered.append(demo_choice(demo, SETTINGS))
    for word in words:
        base, _, revision = word.partition("@")
        if base != ANY:
            offered.append(BaseChoice(base, revision or None))
    fixed = FIXED_ON_ZERO_GPU if zero_gpu else "" if words else NOT_ALLOWED
    bases: dict[str, BaseChoice] = {}
    for choice in offered:
        earlier = bases.get(choice.label)
        if earlier is not None and (earlier.base, earlier.revision) != (choice.base, choice.revision):
            choice = replace(choice, name=_longer_name(choice))
        # The first of a name stays: what the app starts with has adapters.
        bases.setdefault(choice.label, choice)
    return Choices(bases, ANY in words, fixed)


def _longer_name(choice: BaseChoice) -> str:
    """A longer name, to distinguish two bases of the same name: two revisions, or two folders."""
    if choice.revision:
        return f"{choice.label}@{choice.revision}"
    return f"{Path(choice.base).expanduser().resolve().parent.name}/{choice.label}"
