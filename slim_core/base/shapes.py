# SPDX-License-Identifier: Apache-2.0
"""What an adapter has to fit: the names and sizes of a base model's Linears. No weights are needed for that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer, _get_in_out_features
from torch import nn
from transformers import PreTrainedModel

from ..method import base_modules, is_supported
from ..outside.errors import AdapterError, first_line, shown
from .config import build_empty, read_base_config


@dataclass(frozen=True)
class BaseShapes:
    """A base model as an adapter sees it.

    Attributes:
        name: what people call it.
        linears: (C_in, C_out) by module name, in the model's order. Sizes of what the Linear computes: a quantised
            one packs its weight into another shape, and GPT-2's Conv1D turns it.
        others: names of all other modules.
        family: its `model_type`, such as "llama"; None if it has none.
        head: name of the output head, which `"all-linear"` leaves out; None if it has none.
        source: its folder or Hub id. Only ever compared with what an adapter says that it was trained on.
    """

    name: str
    linears: Mapping[str, tuple[int, int]]
    others: frozenset[str]
    family: str | None
    head: str | None
    source: str = ""


def describe_base(model: PreTrainedModel | PeftModel, name: str | None = None) -> BaseShapes:
    """Describe a live model; adapters that it carries are looked through.

    Args:
        model: the base, or a `PeftModel` around it. Its weights may be on the meta device.
        name: what people call it; None for its folder or Hub id.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    modules = base_modules(base)
    linears = {key: _get_in_out_features(module) for key, module in modules.items() if is_supported(module)}
    source = str(getattr(getattr(base, "config", None), "name_or_path", "") or type(base).__name__)
    family = getattr(getattr(base, "config", None), "model_type", None)
    others = frozenset(modules.keys() - linears.keys())
    return BaseShapes(name or source, MappingProxyType(linears), others, family, _head(base), source)


def _head(base: nn.Module) -> str | None:
    head = base.get_output_embeddings() if isinstance(base, PreTrainedModel) else None
    if isinstance(head, BaseTunerLayer):
        head = head.get_base_layer()
    return (
        next((key for key, module in base_modules(base).items() if module is head), None) if head is not None else None
    )


def base_from_config(name: str, revision: str | None = None) -> BaseShapes:
    """Describe a model by folder or Hub id without its weights: built from its config, on no device.

    Raises:
        AdapterError: if the config cannot be found or is no causal language model that transformers itself knows.
    """
    if revision is not None and Path(name).expanduser().is_dir():
        raise AdapterError(f"{shown(name, 120)} is a folder, which has no revision {shown(revision)}; leave it out.")
    try:
        model = build_empty(read_base_config(name, revision))
    except Exception as error:  # whatever a config can do wrong, transformers raises as it likes
        reason = first_line(error)[:300]
        raise AdapterError(f"The base model {shown(name, 120)} cannot be described: {reason}.") from None
    return describe_base(model, name)
