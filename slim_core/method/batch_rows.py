# SPDX-License-Identifier: Apache-2.0
"""The rows of one batch as different adapters: set for one forward or for many."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from .context import BASE_ROW, ForwardContext
from .layer import SlimLayer


@contextmanager
def adapter_rows(
    model: nn.Module, adapter_names: list[str], strengths: list[float | None] | None = None
) -> Iterator[None]:
    """Inside, every forward of the adapted model has these rows: for a loop that would pay for it at each token.

    PEFT's own way, `model(**batch, adapter_names=...)`, looks through all modules in each forward.

    Args:
        model: the base model that carries the adapters (`PeftModel.get_base_model()`), or any model around it.
        adapter_names: the adapter of each row; `"__base__"` is the base model.
        strengths: the yield strength of each row, None for its adapter's own; 0 forces a gate open.

    Raises:
        ValueError: if the model has no SLIM layer, a name is unknown, or the model is in training mode.
        RuntimeError: if a batch with `adapter_names` is running already.
    """
    context, configs, wrappers = None, set(), []
    for module in model.modules():
        if isinstance(module, SlimLayer):
            context = module.context
            configs.update(module.slim_config)
        elif isinstance(module, AuxiliaryTrainingWrapper):
            wrappers.append(module)
    if context is None:
        raise ValueError("The model has no SLIM layer, so its rows can have no adapters: attach one first.")
    check_names(adapter_names, configs, model.training)
    if strengths is not None and len(strengths) != len(adapter_names):
        raise ValueError(f"There are {len(strengths)} strengths for {len(adapter_names)} rows.")
    with rows_set(context, adapter_names, wrappers, strengths):
        yield


@contextmanager
def rows_set(
    context: ForwardContext,
    adapter_names: list[str],
    wrappers: list[AuxiliaryTrainingWrapper],
    strengths: list[float | None] | None = None,
) -> Iterator[None]:
    if context.adapter_names is not None:
        raise RuntimeError(
            "The model is already answering a batch with `adapter_names`. It serves one call at a time: wait for that "
            "one, or put the rows into one batch."
        )
    handles = [
        module.register_forward_pre_hook(partial(_pass_rows, context=context), with_kwargs=True) for module in wrappers
    ]
    context.set_rows(list(adapter_names), strengths)
    try:
        yield
    finally:
        context.set_rows(None)
        for handle in handles:
            handle.remove()


def check_names(adapter_names: list[str], known: Collection[str], training: bool) -> None:
    if not isinstance(adapter_names, (list, tuple)):
        raise TypeError(f"`adapter_names` must be a list of names, one per row, not {adapter_names!r}.")
    if training:
        raise ValueError("Cannot pass `adapter_names` when the model is in training mode: call `model.eval()` first.")
    unknown = sorted(set(adapter_names) - set(known) - {BASE_ROW})
    if unknown:
        raise ValueError(
            f"Trying to infer with non-existing adapter(s): {', '.join(unknown)}; `adapter_names` may hold "
            f"{', '.join(map(repr, known))} and {BASE_ROW!r}."
        )


def _pass_rows(module: nn.Module, args: tuple, kwargs: dict[str, Any], context: ForwardContext):
    # Modules trained whole (`modules_to_save`) choose their copy by row the way PEFT's own layers do. With beams a
    # batch is a multiple of the names.
    repeat = max(1, len(args[0]) // len(context.adapter_names)) if args else 1
    own = module._get_available_adapters()
    names = [name if name in own else BASE_ROW for name in context.adapter_names]
    kwargs["adapter_names"] = [name for name in names for _ in range(repeat)]
    return args, kwargs
