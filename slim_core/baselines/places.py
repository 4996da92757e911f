# SPDX-License-Identifier: Apache-2.0
"""Where a method is attached to a base model: on Linears, or on whole MLPs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import nn


Kind = Literal["linear", "mlp"]
# The three Linears of a gated MLP: two that read its input, and one that reads their product.
GATED = ("gate_proj", "up_proj", "down_proj")
# Modules of a decoder block that are its MLP, and Linears of one that has no module of its own.
MLPS = {"mlp", "feed_forward", "ffn", "ff"}
BARE = {"fc1", "fc2"}


@dataclass(frozen=True)
class Place:
    """One module of the base that an adapter changes.

    Attributes:
        name: of the module.
        kind: a Linear, or a gated MLP.
        c_in: channels that it reads.
        c_out: channels of a Linear's output; of an MLP, those between its Linears.
        block: number of its decoder block, 0 if it is in none.
        blocks: how many blocks the base has.
    """

    name: str
    kind: Kind
    c_in: int
    c_out: int
    block: int
    blocks: int


def block_of(name: str) -> int:
    """The first number in a module's name, which counts the decoder blocks in every family; 0 if there is none."""
    match = re.search(r"(?:^|\.)(\d+)\.", name)
    return int(match[1]) if match else 0


def blocks_of(names: Iterable[str]) -> int:
    """The number of decoder blocks that contain the modules of these names."""
    return max(map(block_of, names), default=0) + 1


def gated_mlps(linears: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """The gated MLPs among a base's Linears.

    Args:
        linears: (C_in, C_out) by name.

    Returns:
        By name of the module, its channels and those between its Linears.
    """
    mlps = {}
    for name, (c_in, inner) in linears.items():
        parent, _, last = name.rpartition(".")
        others = [linears.get(f"{parent}.{other}") for other in GATED[1:]]
        if last == GATED[0] and others == [(c_in, inner), (inner, c_in)]:
            mlps[parent] = (c_in, inner)
    return mlps


def mlp_linears(names: Iterable[str]) -> set[str]:
    """Endings by which `target_modules` names the Linears of MLPs, such as "mlp.up_proj"."""
    endings = set()
    for name in names:
        *above, last = name.split(".")
        if MLPS & set(above):
            endings.add(".".join(name.split(".")[-2:]))
        elif last in BARE:
            endings.add(last)
    return endings


def is_gated_mlp(module: nn.Module) -> bool:
    """Whether a module is an MLP whose forward is down(act(gate(x)) * up(x))."""
    return all(isinstance(getattr(module, name, None), nn.Module) for name in GATED) and callable(
        getattr(module, "act_fn", None)
    )
