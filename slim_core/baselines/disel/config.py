# SPDX-License-Identifier: Apache-2.0
"""The configuration of DISeL."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from ...method import abbreviated, check_number
from ..config import ExpertsConfig


class DiselType(str, Enum):
    """As `slim_core.method.SlimType`: PEFT's own enum has no room for outside methods."""

    DISEL = "DISEL"


@dataclass
class DiselConfig(ExpertsConfig):
    """Configuration of DISeL (arXiv 2605.19028): a LoRA with a gate for each of its ranks.

    The authors' example has r 64, alpha 128, dropout 0, all Linears of a block, and a learning rate of 2e-4. Rank and
    alpha here are those of all methods, and the training command sets them to SLIM's total.

    Args:
        gate_bias (`float`):
            Where the gates' bias starts. Default `-3.0`: the authors', which leaves the gates nearly closed, at 0.05;
            they advise -5 or -7 for little data.
        gate_rate (`float`):
            How many times the learning rate the gates get. They have no weight decay, which would close or open them.
            Default `5.0`: the authors', whose example has 1e-3 and not 2e-4.
    """

    gate_bias: float = field(default=-3.0, metadata={"help": "Where the gates' bias starts; lower is more closed."})
    gate_rate: float = field(default=5.0, metadata={"help": "How many times the learning rate the gates get."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = DiselType.DISEL
        if isinstance(self.gate_bias, bool) or not isinstance(self.gate_bias, (int, float)):
            raise ValueError(f"`gate_bias` must be a number, not {abbreviated(self.gate_bias)}.")
        check_number("gate_bias", abs(self.gate_bias), 0)
        check_number("gate_rate", self.gate_rate, 0, strict=True)

    @property
    def title(self) -> str:
        return "DISeL"

    @property
    def detail(self) -> str:
        return f"rank {self.r}, a gate for each"
