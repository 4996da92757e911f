# SPDX-License-Identifier: Apache-2.0
"""The configuration of MoLA."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from ...method import abbreviated, check_number
from ..config import ExpertsConfig, check_routing


class MolaType(str, Enum):
    """As `slim_core.method.SlimType`: PEFT's own enum has no room for outside methods."""

    MOLA = "MOLA"


@dataclass
class MolaConfig(ExpertsConfig):
    """Configuration of MoLA (Gao et al., Findings of NAACL 2025, arXiv 2402.08562).

    The authors' script has r 8, alpha 16, dropout 0.05, and all Linears of a block. Rank and alpha here are those of
    all methods, and the training command sets them so that a Linear's total rank is SLIM's on average.

    Args:
        num_experts (`list[int]`):
            Experts per Linear, from the first blocks to the last: with four numbers, for each quarter of the blocks.
            The library writes the number of each block here. Default `[2, 4, 6, 8]`: the authors' script.
        top_k (`int`):
            Experts that answer a token. Default `2`: the authors' script.
        balance_coefficient (`float`):
            Factor of the load balance, which is 1 for each block where experts are used evenly. Default `0.0`: the
            authors' training script, which has it off, and 0.001 where it is on.
    """

    num_experts: list[int] = field(
        default_factory=lambda: [2, 4, 6, 8],
        metadata={"help": "Experts per Linear, from the first blocks to the last."},
    )
    top_k: int = field(default=2, metadata={"help": "Experts that answer a token."})
    balance_coefficient: float = field(default=0.0, metadata={"help": "Factor of the load balance."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = MolaType.MOLA
        if isinstance(self.num_experts, int) and not isinstance(self.num_experts, bool):
            self.num_experts = [self.num_experts]
        if not isinstance(self.num_experts, (list, tuple)) or not 0 < len(self.num_experts) <= 10_000:
            raise ValueError(f"`num_experts` must list numbers of experts, not {abbreviated(self.num_experts)}.")
        self.num_experts = list(self.num_experts)
        for number in self.num_experts:
            check_routing(number, self.top_k)
        check_number("balance_coefficient", self.balance_coefficient, 0)

    def experts_of(self, block: int, blocks: int) -> int:
        """Number of experts per Linear in one of the blocks."""
        return self.num_experts[block * len(self.num_experts) // blocks]

    @property
    def title(self) -> str:
        return "MoLA"

    @property
    def detail(self) -> str:
        least, most = min(self.num_experts), max(self.num_experts)
        return f"rank {self.r}, {least}{'' if least == most else f' to {most}'} experts, top-{self.top_k}"
