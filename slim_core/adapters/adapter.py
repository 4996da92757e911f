# SPDX-License-Identifier: Apache-2.0
"""An adapter from outside that has passed every check."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path

from peft import LoraConfig
from safetensors.torch import load_file
from torch import Tensor

from ..baselines import KINDS
from ..method import SlimConfig
from ..outside.errors import quoted
from ..outside.files import WEIGHTS
from ..outside.header import Header
from .kinds import RowConfig


@dataclass(frozen=True)
class Adapter:
    """A checked adapter. Its files are private copies; `delete` removes them.

    Attributes:
        kind: "lora", "slim", or another of `slim_core.baselines.KINDS` in small letters. A DoRA is a LoRA whose config
            says so.
        label: its name for people; never part of a path or a module's name.
        config: rebuilt from a list of allowed fields. `attach` works on a copy.
        folder: our private folder with the weights.
        header: dtype and shape of each tensor.
        targets: names of the Linears that it adapts; empty if it was checked without a base.
        parameters: number of its trained weights.
        bytes: size of its weights' file. In a model it takes `row_bytes`.
        sha256: of that file, in hex.
        trained_on: the base that its config names, or None. Only ever shown.
        warnings: sentences about what is unusual but allowed.
        ends_with: the text with which it learned to end its answers; None if the base's own token ends them.
    """

    kind: str
    label: str
    config: RowConfig
    folder: Path
    header: Header
    targets: tuple[str, ...]
    parameters: int
    bytes: int
    sha256: str
    trained_on: str | None = None
    warnings: tuple[str, ...] = ()
    ends_with: str | None = None

    @property
    def row_bytes(self) -> int:
        """Memory in bytes that it takes in a model, whatever the precision of its file: everything is float32 except
        masks and counts.
        """
        return sum(math.prod(info.shape) * _number_bytes(name) for name, info in self.header.items())

    @property
    def title(self) -> str:
        """Its kind, as people call it."""
        if isinstance(self.config, LoraConfig):
            return "DoRA" if self.config.use_dora else "LoRA"
        method = KINDS.get(self.kind.upper())
        return "SLIM" if method is None else getattr(self.config, "title", method.title)

    @property
    def detail(self) -> str:
        """A few words such as "rank 16, 8 + 2 experts, top-2"."""
        if isinstance(self.config, (LoraConfig, SlimConfig)):
            words = [f"rank {self.config.r}" + (" (others in places)" if self.config.rank_pattern else "")]
        else:
            words = [getattr(self.config, "detail", f"blocks of {getattr(self.config, 'oft_block_size', 0)}")]
        if isinstance(self.config, SlimConfig):
            words += [f"{self.config.num_experts} + {self.config.num_identity} experts", f"top-{self.config.top_k}"]
        if whole := getattr(self.config, "modules_to_save", None):
            words.append(f"own {' and '.join(sorted(whole))}")
        if getattr(self.config, "trainable_token_indices", None):
            words.append("own tokens")
        if self.ends_with is not None:
            words.append(f"answers end with {quoted(self.ends_with)}")
        return ", ".join(words)

    def tensors(self) -> dict[str, Tensor]:
        """The weights, on the CPU, keyed as in the file."""
        return load_file(self.folder / WEIGHTS)

    def delete(self) -> None:
        """Delete its files. A copy attached to a model is not affected."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _number_bytes(name: str) -> int:
    if name.endswith((".slim_columns", ".slim_rows")):
        return 1
    return 8 if name.endswith(".slim_count") else 4
