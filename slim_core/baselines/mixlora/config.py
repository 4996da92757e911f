# SPDX-License-Identifier: Apache-2.0
"""The configuration of MixLoRA, and of MixLoRA-Dy."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from ...method import check_choice, check_integer, check_number
from ..config import ExpertsConfig, check_routing


class MixloraType(str, Enum):
    """As `slim_core.method.SlimType`: PEFT's own enum has no room for outside methods."""

    MIXLORA = "MIXLORA"


@dataclass
class MixloraConfig(ExpertsConfig):
    """Configuration of MixLoRA (Li et al., 2024, arXiv 2404.15159), and with `mask_rate` above 0 of MixLoRA-Dy.

    The authors' templates have r 16, alpha 32 and dropout 0.05.

    Args:
        num_experts (`int`):
            Experts of each MLP. Attention has one plain LoRA of the same rank. Default `8`: the authors' templates and
            SLIM's paper.
        top_k (`int`):
            Experts that answer a token. Default `2`: the authors' templates and SLIM's paper.
        balance_coefficient (`float`):
            Factor of the load balance, which is K where experts are used evenly. Default `0.01`: the authors'
            documentation; their code's own default is 0.001.
        mask_rate (`float`):
            Share p of the entries of each expert's product that dynamic merging drops, 0 <= p < 1. Above 0 this is
            MixLoRA-Dy, with which SLIM's paper compares: whole rows of B and columns of A are dropped, different ones
            for each expert. Default `0.0`: MixLoRA as in its paper. `train --method mixlora-dy` takes SLIM's rate.
        mask_rescale (`bool`):
            Multiply what survives by 1 / (1 - p), as DARE does. Default `False`: this project's choice, for SLIM too,
            since factors that are trained with the masks can learn a constant themselves.
        mask_seed (`int`):
            Seed of the masks used at inference. Default `0`: this project's choice; any other would do.
        l1_coefficient (`float`):
            Factor of the L1 loss on the factors. Default `0.0`: this project's choice, which leaves it out, since
            SLIM's paper does not say how large it is.
    """

    num_experts: int = field(default=8, metadata={"help": "Experts of each MLP."})
    top_k: int = field(default=2, metadata={"help": "Experts that answer a token."})
    balance_coefficient: float = field(default=0.01, metadata={"help": "Factor of the load balance."})
    mask_rate: float = field(default=0.0, metadata={"help": "Share p that dynamic merging drops: MixLoRA-Dy."})
    mask_rescale: bool = field(default=False, metadata={"help": "Multiply what survives by 1 / (1 - p)."})
    mask_seed: int = field(default=0, metadata={"help": "Seed of the masks used at inference."})
    l1_coefficient: float = field(default=0.0, metadata={"help": "Factor of the L1 loss on the factors."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = MixloraType.MIXLORA
        check_routing(self.num_experts, self.top_k)
        check_number("balance_coefficient", self.balance_coefficient, 0)
        check_number("mask_rate", self.mask_rate, 0, below=1)
        check_choice("mask_rescale", self.mask_rescale, (True, False))
        check_integer("mask_seed", self.mask_seed, 0)
        check_number("l1_coefficient", self.l1_coefficient, 0)

    @property
    def title(self) -> str:
        return "MixLoRA-Dy" if self.mask_rate else "MixLoRA"

    @property
    def detail(self) -> str:
        merged = f", {self.mask_rate:g} merged away" if self.mask_rate else ""
        return f"rank {self.r}, {self.num_experts} experts, top-{self.top_k}{merged}"
