# SPDX-License-Identifier: Apache-2.0
"""Adapters on the base model: attaching, detaching and describing them."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from itertools import count
from pathlib import Path
from typing import cast

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from ..adapters import (
    OPERATOR,
    Adapter,
    AdapterError,
    BaseShapes,
    attach,
    detach,
    named_source,
    open_adapter,
    part_tensors,
    try_out,
)
from ..base.errors import EngineError, is_out_of_memory, out_of_memory_sentence
from ..method import BASE_ROW, SlimConfig, SlimLayer
from ..peft_tools import fold_masks
from .measure import measure_of
from .types import Kind, Variant


log = logging.getLogger(__name__)
BASE = "base"


def new_name(name: str | None, kind: Kind, variants: Iterable[Variant]) -> str:
    """The name of a variant that comes; a free one if none was chosen.

    Raises:
        EngineError: if it is taken.
    """
    taken = {variant.name for variant in variants}
    if name is None:
        return kind if kind not in taken else next(new for n in count(2) if (new := f"{kind}-{n}") not in taken)
    if name in taken:
        raise EngineError(f"There is a variant named {name!r} already: choose another name.")
    return name


def check_variants(names: Iterable[str], variants: Iterable[Variant]) -> None:
    """Raises EngineError if one of the names is no variant's."""
    known = {variant.name for variant in variants}
    for name in names:
        if name not in known:
            raise EngineError(f"There is no variant named {name!r}: it may have been removed.")


def peft_name(variant: str) -> str:
    """A variant's name in `adapter_names`, which is also its adapter's name in PEFT.

    PEFT allows neither dots nor a part of a tuner's prefix, such as "slim".
    """
    return BASE_ROW if variant == BASE else "variant-" + variant.replace("~", "~0").replace(".", "~1")


def opened_adapter(source: str | Path, shapes: BaseShapes) -> Adapter:
    """An operator's adapter, checked, in files of its own.

    Raises:
        EngineError: if a check fails.
    """
    try:
        adapter = open_adapter(named_source(source), shapes, limits=OPERATOR)
    except AdapterError as error:
        raise EngineError(f"The adapter {source} cannot be attached: {error}") from None
    for sentence in adapter.warnings:
        log.warning("%s: %s", source, sentence)
    return adapter


class Adapters:
    """The adapters around one base model.

    Args:
        model: the base model, in evaluation mode.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model: PreTrainedModel | PeftModel = model
        self._base = model

    def attach(self, adapter: Adapter, name: str) -> None:
        """Attach a checked adapter as a variant and try it out.

        Raises:
            EngineError: if it does not fit, its answers overflow, or memory does not suffice; the base and the other
                adapters are as before.
        """
        adapter_name, attached = peft_name(name), False
        try:
            self._model = attach(self._model, adapter, adapter_name)
            attached = True
            # Here it only answers.
            if adapter_name in self._configs():
                fold_masks(self._base, adapter_name)
            try_out(self._model, adapter_name)
        except BaseException as error:
            if attached:
                self.detach(name)
            if isinstance(error, AdapterError):
                raise EngineError(str(error)) from None
            if is_out_of_memory(error):
                raise EngineError(out_of_memory_sentence(self._base.device, 1)) from None
            raise
        finally:
            self._model.requires_grad_(False).eval()

    def detach(self, name: str) -> None:
        """Detach an adapter; after the last one the base is as loaded."""
        self._model = detach(self._model, peft_name(name))

    def variant(self, adapter: Adapter, name: str, label: str) -> Variant:
        """The attached adapter as a `Variant`, with its sizes in this model."""
        tensors = list(_tensors(self._base, peft_name(name)))
        size = sum(t.numel() * t.element_size() for t in tensors)
        count = sum(t.numel() for t in tensors)
        config = self._configs().get(peft_name(name))
        if config is None:
            return Variant(name, adapter.kind, label, count, size, adapter.detail)
        gated = config.routed and config.yield_mode == "gate"
        strength = config.yield_strength if gated else None
        measure = measure_of(config) if config.routed else None
        return Variant(name, adapter.kind, label, count, size, adapter.detail, strength, measure, adapter.ends_with)

    def _configs(self) -> dict[str, SlimConfig]:
        # `attach` makes every adapter a SLIM one.
        return cast("dict[str, SlimConfig]", self._model.peft_config) if isinstance(self._model, PeftModel) else {}

    def opening(self, name: str) -> tuple[int, ...]:
        """The token ids that open a user's turn for a variant; empty if none are set."""
        config = self._configs().get(peft_name(name))
        return tuple(config.turn_opening or ()) if config is not None else ()

    def changes_only(self, name: str, modules: Collection[str]) -> bool:
        """Whether a SLIM variant changes the model in Linears of these names alone."""
        config = self._configs().get(peft_name(name))
        if config is None or any(True for _ in part_tensors(self._base, peft_name(name))):
            return False
        layers = (module for module in self._base.modules() if isinstance(module, SlimLayer))
        return all(layer.module_name in modules for layer in layers if peft_name(name) in layer.slim_A)


def _tensors(model: nn.Module, name: str):
    for module in model.modules():
        if isinstance(module, SlimLayer):
            for path, tensor in [*module.named_parameters(), *module.named_buffers()]:
                # Containers are keyed by the adapter's name; the base's own modules are not.
                if name in path.split(".") and not path.startswith("base_layer."):
                    yield tensor
    yield from part_tensors(model, name)
