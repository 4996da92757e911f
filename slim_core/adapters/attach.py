# SPDX-License-Identifier: Apache-2.0
"""Attach a checked adapter to a model and detach it; on any failure the model is restored."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from peft import LoraConfig, PeftModel, set_peft_model_state_dict
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..base.errors import is_out_of_memory
from ..base.shapes import BaseShapes, describe_base
from ..baselines import experts_of
from ..method import SlimConfig, SlimLayer, SlimType, check_name, context_of, drop_context, keep_context
from ..outside.errors import AdapterError, quoted
from ..outside.files import WEIGHTS
from ..peft_tools import adapter_rows, lora_to_slim
from .adapter import Adapter
from .fit import adapted_linears, check_fit, with_default_targets
from .kinds import RowConfig
from .layout import PREFIX, places_of
from .parts import MAGNITUDE, TOKENS, copied_modules, own_rows
from .row_parts import drop_parts, put_experts, put_magnitudes, put_tables


if TYPE_CHECKING:
    from torch.nn.modules.module import _IncompatibleKeys


def attach(model: PreTrainedModel | PeftModel, adapter: Adapter, name: str) -> PreTrainedModel | PeftModel:
    """Attach an adapter to a model, for use in rows of a batch.

    A LoRA or a SLIM adapter becomes a part of SLIM's layers, and wraps the model in a `PeftModel`; any other hooks the
    base's own modules. The caller must make sure that no forward runs meanwhile. The random numbers of the process
    stay as they are.

    Args:
        model: the base, or a `PeftModel` that carries SLIM rows.
        adapter: checked, against this base or another: whether it fits is checked again.
        name: its name in `adapter_names`.

    Returns:
        The `PeftModel`, the given one if it was one; the given model for other kinds than LoRA and SLIM. Other
        adapters and the active one stay.

    Raises:
        AdapterError: if it does not fit this model, its files are gone, or memory does not suffice.
        ValueError: if the name is taken or cannot be one, or the model carries another kind of adapter.
        RuntimeError: if it is a 4-bit base that `guard_cpu_4bit` was not called for before its first forward.
    """
    if isinstance(model, PeftModel) and model.peft_type != SlimType.SLIM:
        raise ValueError(f"The model carries adapters of the kind {model.peft_type}, not SLIM.")
    if name in names_on(model):
        raise ValueError(f"The model already has an adapter named {name!r}.")
    if experts_of(adapter.config.peft_type) is not None:
        return _attach_guest(model, adapter, name)
    config, tensors, extras = _as_slim(adapter, model)
    try:
        with _unchanged_by_failure(model), torch.random.fork_rng(devices=[]):
            if isinstance(model, PeftModel):
                model.add_adapter(name, config)
            else:
                base, model = model, PeftModel(model, config, name)
                model.training = base.training  # a new wrapper is in training mode
            # PEFT's annotation makes it a named tuple without fields.
            loaded = cast("_IncompatibleKeys", set_peft_model_state_dict(model, tensors, name))
            unexpected = loaded.unexpected_keys
            if unexpected:
                raise AdapterError(
                    f"{WEIGHTS}: {quoted(unexpected[0], 160)} does not belong to any module of the model."
                )
            put_magnitudes(model.get_base_model(), name, extras.magnitudes)
            put_tables(model.get_base_model(), name, extras.copies, extras.rows)
    except (RuntimeError, MemoryError) as error:
        raise _no_memory(error) from None
    return model


def _no_memory(error: RuntimeError | MemoryError) -> Exception:
    if not is_out_of_memory(error):
        return error
    return AdapterError("The device has no memory left for this adapter; remove another one first.")


def names_on(model: PreTrainedModel | PeftModel) -> set[str]:
    """The adapters on a model, in whatever way they are there."""
    context = context_of(model)
    return {*(model.peft_config if isinstance(model, PeftModel) else ()), *(context.guests if context else ())}


def _attach_guest(model: PreTrainedModel | PeftModel, adapter: Adapter, name: str) -> PreTrainedModel | PeftModel:
    """An adapter of a method of `slim_core.baselines`: its rows are computed by hooks on the base's own modules."""
    check_name(name)
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    shapes = describe_base(model)
    config, tensors = _checked_again(adapter, shapes)
    extras = _taken_out(config, tensors, shapes)
    experts_cls = experts_of(config.peft_type)
    assert experts_cls is not None  # the caller has checked it
    context = keep_context(base)
    at = []
    for place in places_of(adapted_linears(config, shapes), shapes):
        experts = experts_cls(config, place)
        front = f"{PREFIX}{place.name}.{experts.prefix}"
        at.append((experts, {key: tensors[front + key] for key in experts.shapes()}))
    try:
        put_experts(base, name, context, at)
        put_tables(base, name, extras.copies, extras.rows)
        context.guests[name] = experts_cls.routed(config)
    except BaseException as error:
        _drop_guest(base, name)
        raise _no_memory(error) if isinstance(error, (RuntimeError, MemoryError)) else error from None
    return model


def _drop_guest(base: nn.Module, name: str) -> None:
    drop_parts(base, name)
    context = context_of(base)
    if context is not None:
        context.guests.pop(name, None)
        if not context.guests:
            drop_context(base)


def load_whole(model: PreTrainedModel, adapter: Adapter, name: str) -> PeftModel:
    """Load an adapter the way PEFT does, complete, for saving or exporting. It cannot be used in rows of a batch.

    Args:
        model: the base that the adapter was checked against.
        adapter: checked.
        name: its name in the model.
    """
    loaded = PeftModel(model, copy.deepcopy(adapter.config), name)
    set_peft_model_state_dict(loaded, adapter.tensors(), name)
    return loaded.eval()


def detach(model: PreTrainedModel | PeftModel, name: str) -> PeftModel | PreTrainedModel:
    """Detach an adapter from a model, with every module that only it needed.

    Returns:
        The model; after its last adapter the base itself, without a trace of PEFT.

    Raises:
        ValueError: if there is no adapter of that name.
    """
    if name not in names_on(model):
        raise ValueError(f"The model has no adapter named {name!r}.")
    if not isinstance(model, PeftModel) or name not in model.peft_config:
        _drop_guest(model.get_base_model() if isinstance(model, PeftModel) else model, name)
        return model
    drop_parts(model.get_base_model(), name)
    if len(model.peft_config) == 1:
        return model.unload()
    if name in model.active_adapters:
        other = next(other for other in model.peft_config if other != name)
        model.set_adapter(other, inference_mode=True)
    model.delete_adapter(name)
    _unwrap_empty(model.get_base_model())
    return model


@torch.no_grad()
def try_out(model: PreTrainedModel | PeftModel, name: str) -> None:
    """Run a few tokens through an attached adapter: checking each number by itself cannot show what they do together.

    Raises:
        AdapterError: if what the model says is not finite.
    """
    device = cast(nn.Embedding, model.get_input_embeddings()).weight.device
    ids = torch.arange(4, device=device).unsqueeze(0)
    with adapter_rows(model, [name]):
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    if not torch.isfinite(logits).all():
        raise AdapterError("With this adapter the model's answers overflow (NaN or infinity); its weights are broken.")


class _Extras(NamedTuple):
    """What an adapter brings beside updates of Linears, by module name; see `put_magnitudes` and `put_tables`."""

    magnitudes: dict[str, Tensor]
    copies: dict[str, dict[str, Tensor]]
    rows: dict[str, tuple[tuple[int, ...], Tensor]]


def _as_slim(adapter: Adapter, model: PreTrainedModel | PeftModel) -> tuple[SlimConfig, dict[str, Tensor], _Extras]:
    """Its config and weights in SLIM's form, after checking once more that they fit this model."""
    base = describe_base(model)
    config, tensors = _checked_again(adapter, base)
    extras = _taken_out(config, tensors, base)
    if isinstance(config, LoraConfig):
        return (*lora_to_slim(config, tensors), extras)
    return cast(SlimConfig, config), tensors, extras


def _checked_again(adapter: Adapter, base: BaseShapes) -> tuple[RowConfig, dict[str, Tensor]]:
    """Its config, which names its targets, and its weights, if they fit a base."""
    if not (adapter.folder / WEIGHTS).is_file():
        raise AdapterError(f"The files of {quoted(adapter.label)} were removed; add the adapter again.")
    check_fit(adapter.config, adapter.header, base)
    return with_default_targets(adapter.config, base), adapter.tensors()


def _taken_out(config: RowConfig, tensors: dict[str, Tensor], base: BaseShapes) -> _Extras:
    """Separate everything that is not an update of a Linear from a config and its tensors."""
    magnitudes = {
        key.removeprefix(PREFIX).removesuffix(f".{MAGNITUDE}"): tensors.pop(key)
        for key in [*tensors]
        if key.endswith(f".{MAGNITUDE}")
    }
    copies = {
        name: {key: tensors.pop(f"{PREFIX}{name}.{key}") for key in ("weight", "bias")[: 1 + (name in base.biased)]}
        for name in copied_modules(config, base)
    }
    rows = {name: (ids, tensors.pop(f"{PREFIX}{name}.{TOKENS}")) for name, ids in own_rows(config, base).items()}
    if base.tied and base.embedding in rows:
        rows[cast(str, base.head)] = rows[base.embedding]  # a tied base has both
    for field, none in (("modules_to_save", None), ("trainable_token_indices", None), ("use_dora", False)):
        if hasattr(config, field):
            setattr(config, field, none)
    return _Extras(magnitudes, copies, rows)


def _layers(model: nn.Module) -> dict[str, SlimLayer]:
    return {name: module for name, module in model.named_modules() if isinstance(module, SlimLayer)}


def _unwrap_empty(base: nn.Module) -> None:
    """Unwrap Linears whose SLIM layer has no adapter left."""
    for name, layer in _layers(base).items():
        if not layer.slim_config:
            parent, _, child = name.rpartition(".")
            setattr(base.get_submodule(parent), child, layer.get_base_layer())


@contextmanager
def _unchanged_by_failure(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Undo a partial attachment on failure: adapters, layers, hooks, trainable flags."""
    wrapper = model if isinstance(model, PeftModel) else None
    base = model if wrapper is None else wrapper.get_base_model()
    adapters = set() if wrapper is None else set(wrapper.peft_config)
    trainable = {parameter: parameter.requires_grad for parameter in model.parameters()}
    had_configs = "peft_config" in base.__dict__
    try:
        yield
    except BaseException:
        layers = _layers(base).values()
        for layer in layers:
            for name in set(layer.slim_config) - adapters:
                drop_parts(base, name)
                layer.delete_adapter(name)
        if wrapper is not None:
            for name in set(wrapper.peft_config) - adapters:
                del wrapper.peft_config[name]
        else:
            for context in {layer.context for layer in layers}:
                context.detach()
            if not had_configs:
                base.__dict__.pop("peft_config", None)
        _unwrap_empty(base)
        for parameter, required_gradient in trainable.items():
            parameter.requires_grad_(required_gradient)
        raise
