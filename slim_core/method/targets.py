# SPDX-License-Identifier: Apache-2.0
"""Which Linears of a base model an adapter may have."""

from __future__ import annotations

from peft.tuners.tuners_utils import BaseTunerLayer, _get_in_out_features
from peft.utils import resolve_quantization_backend
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers.pytorch_utils import Conv1D


def base_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The base model's modules by name: an adapted Linear is its base, and adapters' own modules are left out."""
    modules: dict[str, nn.Module] = {}
    inside: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if not name or (inside and name.startswith(inside)):
            continue
        if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
            inside += (name + ".",)
        if not isinstance(module, AuxiliaryTrainingWrapper):
            modules[name] = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
    return modules


def is_supported(module: nn.Module) -> bool:
    """Whether SLIM can adapt this module: a Linear in full precision, 4 or 8 bits, or GPT-2's Conv1D."""
    backend = resolve_quantization_backend(module)
    if backend is not None:
        return backend.layer_type == "linear"
    return isinstance(module, (nn.Linear, Conv1D))


def as_list(names: list[str] | set[str] | str | None) -> list[str] | str | None:
    """Names of modules as PEFT's own configs are declared to take them: SLIM's keeps a set."""
    return sorted(names) if isinstance(names, set) else names


def features(linear: nn.Module) -> tuple[int, int]:
    """C_in and C_out of a Linear.

    Raises:
        TypeError: if it is none.
    """
    c_in, c_out = _get_in_out_features(linear)
    if c_in is None or c_out is None:
        raise TypeError(f"A {type(linear).__name__} is not a Linear.")
    return c_in, c_out


def check_heads(model: nn.Module, targets: dict[str, nn.Module]) -> None:
    """Refuse an output head: it reads only tokens whose logits are needed, so their contexts are not known there."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    for name, module in targets.items():
        if module is head:
            raise ValueError(
                f"`{name}` is the output head, which in generation reads only the last token, so contexts are not "
                "known there. Leave it out of `target_modules`, name it in `modules_to_save`, or train with "
                'distance_scope="token".'
            )
