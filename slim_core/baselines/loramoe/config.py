# SPDX-License-Identifier: Apache-2.0
"""The configuration of LoRAMoE."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from ...method import check_integer, check_number
from ..config import ExpertsConfig


class LoramoeType(str, Enum):
    """As `slim_core.method.SlimType`: PEFT's own enum has no room for outside methods."""

    LORAMOE = "LORAMOE"


@dataclass
class LoramoeConfig(ExpertsConfig):
    """Configuration of LoRAMoE (Dou et al., ACL 2024, arXiv 2312.09979).

    The authors' script has r 4, alpha 32 and dropout 0.05; SLIM's paper compares with experts of rank 16, and so does
    this project.

    Args:
        num_experts (`int`):
            Experts per Linear, all of which answer every token. Default `8`: the authors' script and SLIM's paper.
        balance_coefficient (`float`):
            Factor of the localised balancing loss. Default `0.01`: this project's choice, the size of MixLoRA's. The
            authors' script has 0, which leaves the paper's own loss out, and without it their users saw no gain over
            LoRA.
        balance_offset (`float`):
            How unevenly the two kinds of samples are to use the two kinds of experts: delta in the paper, from 0 to
            below 1. It matters only if sample types are set; see `sample_types`. Default `0.1`: this project's choice,
            since with the 0 of the authors' script the types would make no difference.
    """

    num_experts: int = field(default=8, metadata={"help": "Experts per Linear; all answer every token."})
    balance_coefficient: float = field(default=0.01, metadata={"help": "Factor of the localised balancing loss."})
    balance_offset: float = field(
        default=0.1, metadata={"help": "How unevenly two kinds of samples use the experts, if the kinds are known."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = LoramoeType.LORAMOE
        check_integer("num_experts", self.num_experts, 1)
        check_number("balance_coefficient", self.balance_coefficient, 0)
        check_number("balance_offset", self.balance_offset, 0, below=1)

    @property
    def title(self) -> str:
        return "LoRAMoE"

    @property
    def detail(self) -> str:
        return f"rank {self.r}, {self.num_experts} experts, all for each token"
