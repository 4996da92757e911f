# SPDX-License-Identifier: Apache-2.0
"""Whether an adapter's file is consistent in itself. Without a base, its factors show how large the Linears are."""

from __future__ import annotations

from types import MappingProxyType

from peft import LoraConfig

from ..base.shapes import BaseShapes
from ..baselines import Experts, Place, block_of, blocks_of, experts_of
from ..outside.errors import AdapterError, quoted
from ..outside.files import WEIGHTS
from ..outside.header import Header, TensorInfo
from .fit import check_dtypes, is_target
from .kinds import RowConfig
from .layout import PREFIX, TensorLayout, expected_layout, layout_at, table_tensors
from .parts import TOKENS


MOST_TOKENS = 2**31


def check_without_base(config: RowConfig, header: Header) -> None:
    """Check the tensors of a file against its config and against each other.

    Args:
        config: a config rebuilt by `read_config`.
        header: of its file.

    Raises:
        AdapterError: for a name, shape or dtype that no base could need.
    """
    if (experts := experts_of(config.peft_type)) is not None:
        _check_places(config, header, experts)
        return
    first, second = ("lora_A.weight", "lora_B.weight") if isinstance(config, LoraConfig) else ("slim_A", "slim_B")
    linears = _linears(header, first, second)
    _check_targets(config, linears)
    # Linears that share a router use the first one's, so Linears with a router come first.
    targets = tuple(sorted(linears, key=lambda name: f"{PREFIX}{name}.slim_router" not in header))
    layout = expected_layout(config, targets, _base_by_header(config, header, linears))
    _check_names(header, layout, first, second)
    _check_shapes(header, layout)
    check_dtypes(header, layout)


def _check_places(config: RowConfig, header: Header, experts: type[Experts]) -> None:
    """The same for a method of `slim_core.baselines`: the tensors of a place tell how large it is."""
    shapes_by_module: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, info in header.items():
        module, separator, key = name.rpartition(f".{experts.prefix}")
        if separator and module.startswith(PREFIX):
            shapes_by_module.setdefault(module.removeprefix(PREFIX), {})[key] = info.shape
    if not shapes_by_module:
        first = f"{PREFIX}model.layers.0.mlp.up_proj.{experts.prefix}{experts.keys[0]}"
        raise AdapterError(
            f"{WEIGHTS}: no tensor has an expected name: the first is {quoted(next(iter(header)), 160)}, but names "
            f"look like '{first}'; save the adapter with PEFT's `save_pretrained`."
        )
    blocks = experts.blocks(config) or blocks_of(shapes_by_module)
    places, sizes = [], {}
    for module, shapes in shapes_by_module.items():
        try:
            kind, c_in, c_out = experts.size(shapes)
        except (KeyError, IndexError, ValueError):
            raise AdapterError(
                f"{WEIGHTS}: the tensors of {quoted(module, 160)} are not all there, or not of the right number of "
                "dimensions; the file is incomplete."
            ) from None
        if block_of(module) >= blocks:
            raise AdapterError(
                f"{WEIGHTS}: it holds tensors of {quoted(module, 160)}, but by the config the base has {blocks:,} "
                "blocks; the two files belong to different adapters."
            )
        places.append(Place(module, kind, c_in, c_out, block_of(module), blocks))
        sizes[module] = (c_in, c_out)
    _check_targets(config, sizes)
    layout = layout_at(config, places) | _tables_without_base(config, header)
    _check_names(header, layout, *(f"{experts.prefix}{key}" for key in experts.keys[:2]))
    _check_shapes(header, layout)
    check_dtypes(header, layout)


def _tables_without_base(config: RowConfig, header: Header) -> TensorLayout:
    return table_tensors(config, _base_by_header(config, header, {}))


def _linears(header: Header, first: str, second: str) -> dict[str, tuple[int, int]]:
    """(C_in, C_out) by module name, from each pair of factors."""
    linears = {}
    for name, info in header.items():
        if not name.startswith(PREFIX) or not name.endswith(f".{first}"):
            continue
        other = name.removesuffix(first) + second
        if other not in header:
            raise AdapterError(f"{WEIGHTS}: {quoted(other, 160)} is missing beside {first}; the file is incomplete.")
        module = name.removeprefix(PREFIX).removesuffix(f".{first}")
        linears[module] = (_sides(name, info)[1], _sides(other, header[other])[0])
    if not linears:
        raise AdapterError(
            f"{WEIGHTS}: no tensor has an expected name: the first is {quoted(next(iter(header)), 160)}, but names "
            f"look like '{PREFIX}model.layers.0.mlp.up_proj.{first}'; save the adapter with PEFT's `save_pretrained`."
        )
    return linears


def _base_by_header(config: RowConfig, header: Header, linears: dict[str, tuple[int, int]]) -> BaseShapes:
    """The base that the file implies."""
    tokens = getattr(config, "trainable_token_indices", None) or ()
    tables: dict[str, tuple[int, int]] = {}
    for named, ending, count in (
        (getattr(config, "modules_to_save", None) or (), ".weight", None),
        (tokens if isinstance(tokens, dict) else ("",) if tokens else (), f".{TOKENS}", MOST_TOKENS),
    ):
        given_modules = [key.removeprefix(PREFIX).removesuffix(ending) for key in header if key.endswith(ending)]
        for name in named:
            module = next((module for module in given_modules if _is_called(module, name)), name)
            info = header.get(f"{PREFIX}{module}{ending}")
            shape = (0, 0) if info is None else info.shape
            # With another number of dimensions it fits nowhere; the layout check reports that.
            rows, columns = shape if len(shape) == 2 else (0, 0)
            tables[module] = (rows if count is None else count, columns)
    present = [name for name in tables if f"{PREFIX}{name}.{TOKENS}" in header]
    # If the head is tied to the embedding, the file has no second copy.
    tied = len(tokens) == 2 and len(present) == 1
    head = next((name for name in tables if name not in present), None) if tied else None
    biased = frozenset(name for name in tables if f"{PREFIX}{name}.bias" in header)
    return BaseShapes("", MappingProxyType(linears), frozenset(), None, head, "", tables, biased, tied)


def _is_called(module: str, name: str) -> bool:
    return not name or module == name or module.endswith(f".{name}")


def _sides(name: str, info: TensorInfo) -> tuple[int, ...]:
    if len(info.shape) != 2 or 0 in info.shape:
        raise AdapterError(
            f"{WEIGHTS}: {quoted(name, 160)} has the shape {list(info.shape)}; a factor must have two dimensions, "
            "neither of them 0."
        )
    return info.shape


def _check_targets(config: RowConfig, linears: dict[str, tuple[int, int]]) -> None:
    if config.target_modules is None:  # PEFT's default, which depends on the base
        return
    wrong = next((name for name in linears if not is_target(config, name)), None)
    if wrong is not None:
        raise AdapterError(
            f"{WEIGHTS}: it holds factors of {quoted(wrong, 160)}, which is not among the config's `target_modules`; "
            "the two files belong to different adapters."
        )


def _check_names(header: Header, layout: TensorLayout, first: str, second: str = "") -> None:
    missing = next((name for name in layout if name not in header), None)
    if missing is not None:
        raise AdapterError(
            f"{WEIGHTS}: {quoted(missing, 160)} is missing, which the config asks for; the file is incomplete or "
            "belongs to another config."
        )
    extra = next((name for name in header if name not in layout), None)
    if extra is not None:
        both = f"{first}, {second}" if second else first
        raise AdapterError(
            f"{WEIGHTS}: {quoted(extra, 160)} has no place beside the tensors of each Linear, {both} and what the "
            "config asks for; save the adapter with PEFT's `save_pretrained`."
        )


def _check_shapes(header: Header, layout: TensorLayout) -> None:
    for name, info in header.items():
        if info.shape != layout[name].shape:
            raise AdapterError(
                f"{WEIGHTS}: {quoted(name, 160)} has the shape {list(info.shape)}, but by the config and the Linear's "
                f"other tensors it must be {list(layout[name].shape)}; the two files belong to different adapters."
            )
