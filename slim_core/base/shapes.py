# SPDX-License-Identifier: Apache-2.0
"""The names and sizes of a base model's Linears, which an adapter must fit. No weights are needed for that."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import cast

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer, _get_in_out_features
from torch import nn
from transformers import PreTrainedModel

from ..method import base_modules, is_supported
from ..outside.errors import AdapterError, first_line, quoted
from .config import build_empty, read_base_config


@dataclass(frozen=True)
class BaseShapes:
    """The shapes of a base model that matter to an adapter.

    Attributes:
        name: what people call it.
        linears: (C_in, C_out) by module name, in the model's order. Sizes of what the Linear computes: a quantised
            one packs its weight into another shape, and GPT-2's Conv1D turns it.
        others: names of all other modules.
        family: its `model_type`, such as "llama"; None if it has none.
        head: name of the output head, which `"all-linear"` leaves out; None if it has none.
        source: its folder or Hub id. Only ever compared with what an adapter says that it was trained on.
        tables: (tokens, width) of the input embedding and of the output head, by module name. An adapter may bring
            its own in whole, or single rows of them.
        biased: which of them add a bias.
        tied: whether they are one and the same weight.
    """

    name: str
    linears: Mapping[str, tuple[int, int]]
    others: frozenset[str]
    family: str | None
    head: str | None
    source: str = ""
    tables: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    biased: frozenset[str] = frozenset()
    tied: bool = False

    @property
    def embedding(self) -> str | None:
        """Name of the input embedding; None if it is not recognised."""
        return next((name for name in self.tables if name != self.head), None)


def describe_base(model: PreTrainedModel | PeftModel, name: str | None = None) -> BaseShapes:
    """Describe a loaded model, ignoring its adapters.

    Args:
        model: the base, or a `PeftModel` around it. Its weights may be on the meta device.
        name: what people call it; None for its folder or Hub id.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    modules = base_modules(base)
    # PEFT knows the sizes of supported modules, and returns None for others.
    sizes = {key: _get_in_out_features(module) for key, module in modules.items() if is_supported(module)}
    linears = cast("dict[str, tuple[int, int]]", sizes)
    source = str(getattr(getattr(base, "config", None), "name_or_path", "") or type(base).__name__)
    family = getattr(getattr(base, "config", None), "model_type", None)
    others = frozenset(modules.keys() - linears.keys())
    head, tables = _head(base), _tables(base, modules)
    shapes = MappingProxyType({key: _table_shape(module) for key, module in tables.items()})
    biased = frozenset(key for key, module in tables.items() if getattr(module, "bias", None) is not None)
    tied = len(tables) == 2 and len({id(module.weight) for module in tables.values()}) == 1
    return BaseShapes(name or source, MappingProxyType(linears), others, family, head, source, shapes, biased, tied)


def _table_shape(module: nn.Module) -> tuple[int, int]:
    """Rows and columns of an embedding or a head."""
    rows, columns = cast("nn.Parameter", module.weight).shape
    return rows, columns


def _head(base: nn.Module) -> str | None:
    head = _output(base)
    return (
        next((key for key, module in base_modules(base).items() if module is head), None) if head is not None else None
    )


def _output(base: nn.Module) -> nn.Module | None:
    head = base.get_output_embeddings() if isinstance(base, PreTrainedModel) else None
    return head.get_base_layer() if isinstance(head, BaseTunerLayer) else head


def _tables(base: nn.Module, modules: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """The input embedding and the output head by name, where they are plain ones in full precision."""
    tables = [_output(base)]
    if isinstance(base, PreTrainedModel):
        with suppress(NotImplementedError, AttributeError):  # some models have no single one
            tables.append(base.get_input_embeddings())
    return {
        key: module
        for key, module in modules.items()
        if any(module is table for table in tables)
        and isinstance(module, (nn.Embedding, nn.Linear))
        and module.weight.is_floating_point()
    }


def base_from_config(name: str, revision: str | None = None) -> BaseShapes:
    """Describe a model by folder or Hub id without its weights: built from its config, on no device.

    Raises:
        AdapterError: if the config cannot be found or is not a causal language model that transformers itself
            supports.
    """
    if revision is not None and Path(name).expanduser().is_dir():
        raise AdapterError(f"{quoted(name, 120)} is a folder, which has no revision {quoted(revision)}; leave it out.")
    try:
        model = build_empty(read_base_config(name, revision))
    except Exception as error:  # transformers raises many kinds of errors for bad configs
        reason = first_line(error)[:300]
        raise AdapterError(f"The base model {quoted(name, 120)} cannot be described: {reason}.") from None
    return describe_base(model, name)
