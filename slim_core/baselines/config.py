# SPDX-License-Identifier: Apache-2.0
"""Fields shared by the configurations of all methods in this package."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional, Union

from peft.config import PeftConfig

from ..method import check_choice, check_integer, check_number


FORMAT_VERSION = 1


@dataclass
class ExpertsConfig(PeftConfig):
    """Fields of every method's configuration.

    The description of each field that `train --option` can set has its default, and where that comes from.

    Args:
        r (`int`):
            Rank of each expert. Default `16`: that of SLIM's paper, so that an expert is as large in every method. The
            training command sets it from `--rank`.
        alpha (`float`):
            LoRA scaling numerator; the factor is `alpha / r`. Default `32.0`: this project's choice, twice the rank,
            as in the scripts of MixLoRA, MoLA and DISeL.
        dropout (`float`):
            Dropout on the experts' input while training, and only then. Default `0.0`: this project's choice, so that
            all methods are trained alike; the authors of LoRAMoE, MixLoRA and MoLA have 0.05.
        target_modules (`Union[list[str], str]`, *optional*):
            Names of the modules to adapt, a regular expression, or `"all-linear"`. Unset means where the method's
            paper puts it.
        exclude_modules (`Union[list[str], str]`, *optional*):
            Names (or a regular expression) of modules that are not adapted although they match `target_modules`.
        modules_to_save (`list[str]`, *optional*):
            Other modules to train and save whole.
        trainable_token_indices (`Union[list[int], dict[str, list[int]]]`, *optional*):
            Tokens whose rows in the input embedding are trained too, or by name of the embedding and the head.
        layers_to_transform (`Union[list[int], int]`, *optional*):
            Adapt only the blocks with these indices.
        layers_pattern (`Union[list[str], str]`, *optional*):
            Name of the list that holds the blocks, if it is not one of the usual ones.
        init_weights (`bool`):
            Start with B = 0, so that a new adapter changes nothing. `False` draws B as well (for tests). Default
            `True`: PEFT's own for LoRA.
        format_version (`int`):
            Version of the saved format. Set by the library.
    """

    r: int = field(default=16, metadata={"help": "Rank of each expert."})
    alpha: float = field(default=32.0, metadata={"help": "LoRA scaling numerator; the factor is alpha / r."})
    dropout: float = field(default=0.0, metadata={"help": "Dropout on the experts' input while training."})
    target_modules: Optional[Union[list[str], str]] = field(
        default=None, metadata={"help": "Names of the modules to adapt, a regular expression, or 'all-linear'."}
    )
    exclude_modules: Optional[Union[list[str], str]] = field(
        default=None, metadata={"help": "Names, or a regular expression, of modules to leave alone."}
    )
    modules_to_save: Optional[list[str]] = field(
        default=None, metadata={"help": "Other modules to train and save whole."}
    )
    trainable_token_indices: Optional[Union[list[int], dict[str, list[int]]]] = field(
        default=None, metadata={"help": "Tokens whose rows are trained too, of the embedding or by module name."}
    )
    layers_to_transform: Optional[Union[list[int], int]] = field(
        default=None, metadata={"help": "Adapt only the blocks with these indices."}
    )
    layers_pattern: Optional[Union[list[str], str]] = field(
        default=None, metadata={"help": "Name of the list that holds the blocks, if it is unusual."}
    )
    init_weights: bool = field(
        default=True, metadata={"help": "Start with B = 0, so that a new adapter changes nothing."}
    )
    format_version: int = field(
        default=FORMAT_VERSION, metadata={"help": "Version of the saved format. Set by the library."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("target_modules", "exclude_modules"):
            if isinstance(getattr(self, name), (list, tuple)):
                setattr(self, name, set(getattr(self, name)))
        check_integer("format_version", self.format_version, 1)
        if self.format_version > FORMAT_VERSION:
            raise ValueError(
                f"This adapter is saved in format {self.format_version}; the installed slim_core reads formats up to "
                f"{FORMAT_VERSION}. Upgrade slim_core to load it."
            )
        check_integer("r", self.r, 1)
        check_number("alpha", self.alpha, 0, strict=True)
        check_number("dropout", self.dropout, 0, below=1)
        check_choice("init_weights", self.init_weights, (True, False))
        if self.layers_to_transform is not None and isinstance(self.target_modules, str):
            raise ValueError("`layers_to_transform` needs `target_modules` as a list of names.")
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError("`layers_pattern` is set, so `layers_to_transform` must say which blocks.")

    @property
    def title(self) -> str:
        """The display name of the method."""
        raise NotImplementedError

    @property
    def detail(self) -> str:
        """A few words such as "rank 16, 8 experts, top-2"."""
        return f"rank {self.r}"


def check_routing(num_experts: int, top_k: int) -> None:
    """Raises ValueError if that many experts cannot be chosen."""
    check_integer("num_experts", num_experts, 1)
    check_integer("top_k", top_k, 1)
    if top_k > num_experts:
        raise ValueError(f"`top_k` is {top_k}, but there are only {num_experts} experts; choose 1 to {num_experts}.")
