# SPDX-License-Identifier: Apache-2.0
"""Keep bitsandbytes' 4-bit Linears trainable and savable on CPUs with AVX512-BF16."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import nn


@runtime_checkable
class _Repacking(Protocol):
    """A 4-bit Linear of bitsandbytes that repacks its weight if the processor can use it."""

    support_avx512bf16_for_cpu: bool


def guard_cpu_4bit(model: nn.Module) -> None:
    """Stop bitsandbytes from repacking the 4-bit weights of `model`; a no-op on other models.

    It repacks at the first forward in evaluation mode. Repacked weights pass no gradient to their input, and taking a
    state dict unpacks them, wrongly without double quantisation, in the running model too; all of it without a word.
    Every 4-bit Linear matters, adapted or not. Attaching a SLIM adapter calls this; call it yourself where a 4-bit
    base answers before its first adapter comes.

    Raises:
        RuntimeError: if a weight is already repacked.
    """
    modules: dict[str, nn.Module] = dict(model.named_modules())
    for name, module in modules.items():
        if not isinstance(module, _Repacking):
            continue
        if getattr(getattr(module.weight, "quant_state", None), "packing_format_for_cpu", False):
            raise RuntimeError(
                f"The 4-bit weight of `{name}` was repacked for this CPU by a forward before the adapter was "
                "attached; bitsandbytes can neither train through it nor save it. Load the base model again and "
                "attach the adapter before its first forward."
            )
    for module in modules.values():
        if isinstance(module, _Repacking):
            module.support_avx512bf16_for_cpu = False
