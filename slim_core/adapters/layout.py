# SPDX-License-Identifier: Apache-2.0
"""The tensors that an adapter's file must have for a given base: exactly these names, shapes and dtypes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

from peft import LoraConfig

from ..base.shapes import BaseShapes
from ..baselines import Place, block_of, blocks_of, experts_of, gated_mlps
from ..method import LENGTH_BUCKETS, LEVELS, SAME_INPUT, SlimConfig
from .kinds import RowConfig
from .parts import MAGNITUDE, TOKENS, copied_modules, own_rows


FLOATS = frozenset({"F32", "F16", "BF16"})
# A model that was cast as a whole also saves its masks and counts in that dtype; they are converted back.
MASKS, COUNTS = FLOATS | {"BOOL"}, FLOATS | {"I64"}
PREFIX = "base_model.model."


class ExpectedTensor(NamedTuple):
    """One tensor of the file: allowed dtypes in safetensors' names, and shape."""

    dtypes: frozenset[str]
    shape: tuple[int, ...]


TensorLayout = dict[str, ExpectedTensor]


def expected_layout(config: RowConfig, targets: tuple[str, ...], base: BaseShapes) -> TensorLayout:
    """All tensors in the file of an adapter with this config on these Linears.

    Raises:
        AdapterError: if it brings parts that this base cannot have.
    """
    tables = table_tensors(config, base)
    if experts_of(config.peft_type) is not None:
        return tables | layout_at(config, places_of(targets, base))
    if isinstance(config, LoraConfig):
        return tables | {
            f"{PREFIX}{name}.{key}": tensor
            for name in targets
            for key, tensor in _lora_tensors(config, rank_of(config, name), *base.linears[name]).items()
        }
    assert isinstance(config, SlimConfig)  # nothing else passes `read_config`
    readers = _shared_routers(config, targets)
    return tables | {
        f"{PREFIX}{name}.{key}": tensor
        for name in targets
        for key, tensor in _slim_tensors(config, rank_of(config, name), *base.linears[name], name in readers).items()
    }


def places_of(targets: Iterable[str], base: BaseShapes) -> list[Place]:
    """The places of these names in a base: its Linears, and its gated MLPs."""
    linears = {name: sizes for name, sizes in base.linears.items() if name != base.head}
    blocks, mlps = blocks_of(linears), gated_mlps(linears)
    return [
        Place(name, "linear", *base.linears[name], block_of(name), blocks)
        if name in base.linears
        else Place(name, "mlp", *mlps[name], block_of(name), blocks)
        for name in targets
    ]


def layout_at(config: RowConfig, places: Iterable[Place]) -> TensorLayout:
    """The tensors of a method of `slim_core.baselines` at these places."""
    experts = experts_of(config.peft_type)
    assert experts is not None  # the caller has checked it
    return {
        f"{PREFIX}{place.name}.{experts.prefix}{key}": ExpectedTensor(FLOATS, shape)
        for place in places
        for key, shape in experts(config, place).shapes().items()
    }


def rank_of(config: LoraConfig | SlimConfig, name: str) -> int:
    """Rank of each expert in one Linear."""
    return _by_pattern(config.rank_pattern or {}, name, config.r)


def scaling_of(config: LoraConfig | SlimConfig, name: str) -> float:
    """Factor of the update of one Linear."""
    alpha = config.lora_alpha if isinstance(config, LoraConfig) else config.alpha
    rank = rank_of(config, name)
    return _by_pattern(config.alpha_pattern or {}, name, alpha) / (math.sqrt(rank) if config.use_rslora else rank)


def _by_pattern(pattern: dict[str, Any], name: str, default: Any) -> Any:
    """As in PEFT, the first pattern that equals the name or its ending counts."""
    return next((value for key, value in pattern.items() if name == key or name.endswith(f".{key}")), default)


def table_tensors(config: RowConfig, base: BaseShapes) -> TensorLayout:
    """Heads and embeddings that the adapter replaces, and single rows of them."""
    expected = {}
    for name in copied_modules(config, base):
        expected[f"{PREFIX}{name}.weight"] = ExpectedTensor(FLOATS, base.tables[name])
        if name in base.biased:
            expected[f"{PREFIX}{name}.bias"] = ExpectedTensor(FLOATS, base.tables[name][:1])
    for name, tokens in own_rows(config, base).items():
        expected[f"{PREFIX}{name}.{TOKENS}"] = ExpectedTensor(FLOATS, (len(tokens), base.tables[name][1]))
    return expected


def _lora_tensors(config: LoraConfig, r: int, c_in: int, c_out: int) -> TensorLayout:
    tensors = {"lora_A.weight": ExpectedTensor(FLOATS, (r, c_in)), "lora_B.weight": ExpectedTensor(FLOATS, (c_out, r))}
    return tensors | ({MAGNITUDE: ExpectedTensor(FLOATS, (c_out,))} if config.use_dora else {})


def _slim_tensors(config: SlimConfig, r: int, c_in: int, c_out: int, shares: bool) -> TensorLayout:
    rank = config.num_experts * r
    tensors = {"slim_A": ExpectedTensor(FLOATS, (rank, c_in)), "slim_B": ExpectedTensor(FLOATS, (c_out, rank))}
    if config.routed and not shares:
        tensors |= _router_tensors(config, c_in)
    if config.merge == "fast" and config.mask_rate > 0:
        tensors |= {"slim_columns": ExpectedTensor(MASKS, (c_in,)), "slim_rows": ExpectedTensor(MASKS, (c_out,))}
    return tensors


def _router_tensors(config: SlimConfig, c_in: int) -> TensorLayout:
    experts, clusters = config.num_experts + config.num_identity, config.num_clusters
    tensors = {
        "slim_router": ExpectedTensor(FLOATS, (experts, c_in)),
        "slim_router_bias": ExpectedTensor(FLOATS, (experts,)),
        "slim_center": ExpectedTensor(FLOATS, (clusters, c_in)),
        "slim_var": ExpectedTensor(FLOATS, (clusters, c_in)),
        "slim_count": ExpectedTensor(COUNTS, (clusters,)),
    }
    if config.router_hidden:
        tensors["slim_router_down"] = ExpectedTensor(FLOATS, (config.router_hidden, c_in))
        tensors["slim_router_up"] = ExpectedTensor(FLOATS, (c_in, config.router_hidden))
    contextual = config.distance_scope == "context"
    if contextual:
        tensors |= {name: ExpectedTensor(FLOATS, (1, c_in)) for name in ("slim_token_mean", "slim_token_var")}
    if config.yield_mode != "paper":
        several = (len(LEVELS), LENGTH_BUCKETS if contextual else 1)
        tensors["slim_reference"] = ExpectedTensor(FLOATS, () if config.format_version == 1 else several)
    return tensors


def _shared_routers(config: SlimConfig, targets: tuple[str, ...]) -> set[str]:
    """Linears that use the router of an earlier sibling with the same input and have none of their own."""
    if config.router_scope != "block":
        return set()
    owners: set[tuple[str, tuple[str, ...]]] = set()
    readers = set()
    for name in targets:
        parent, _, last = name.rpartition(".")
        for group in (group for group in SAME_INPUT if last in group):
            if (parent, group) in owners:
                readers.add(name)
            owners.add((parent, group))
    return readers
