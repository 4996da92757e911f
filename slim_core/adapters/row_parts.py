# SPDX-License-Identifier: Apache-2.0
"""Changes to base modules for an adapter's rows: DoRA magnitudes, its own head, embedding or token rows, or the
outputs of a method of `slim_core.baselines`.

Each is a hook on one module of the base. It changes only the rows of its adapter, so that every other row stays bit
for bit what the base computed. Modules are neither wrapped nor copied, and without such an adapter nothing is hooked.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from .. import baselines
from ..baselines import Running, Tensors
from ..method import ForwardContext, SlimLayer, context_of


class RowPart:
    """Changes the output of one base module for the rows of one adapter.

    Args:
        name: of the adapter in `adapter_names`.
        context: says whose the rows are.
    """

    def __init__(self, name: str, context: ForwardContext) -> None:
        self._name, self._context = name, context

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        rows = self._of(output)
        if rows is None:
            return None
        output[rows] = self._changed(module, args[0][rows].to(output.device), output[rows]).to(output.dtype)
        return output

    def _of(self, output: Tensor) -> slice | Tensor | None:
        """Which of the module's rows are the adapter's; None if none are."""
        rows = self._context.rows
        return None if rows is None else rows.by_adapter(len(output), output.device).get(self._name)

    def _changed(self, module: nn.Module, x: Tensor, output: Tensor) -> Tensor:
        raise NotImplementedError

    def tensors(self) -> list[Tensor]:
        """Its tensors in memory."""
        raise NotImplementedError


class Magnitudes(RowPart):
    """DoRA: scales each output channel of W x by `factor`. The LoRA update is scaled through its factor B.

    Args:
        factor: (C_out,) float32.
    """

    def __init__(self, name: str, context: ForwardContext, factor: Tensor) -> None:
        super().__init__(name, context)
        # Computed as in PEFT, so that a factor of 1 changes nothing.
        self._more = factor - 1

    def _changed(self, module: nn.Module, x: Tensor, output: Tensor) -> Tensor:
        bias = getattr(module, "bias", None)
        return output + self._more * (output if bias is None else output - bias)

    def tensors(self) -> list[Tensor]:
        return [self._more]


class ReplacedModule(RowPart):
    """The adapter's own head or embedding, in the base's precision.

    Args:
        state: its weight, and its bias if the base's has one.
        module: of the base.
    """

    def __init__(self, name: str, context: ForwardContext, state: dict[str, Tensor], module: nn.Module) -> None:
        super().__init__(name, context)
        self._copy = copy.copy(module)
        self._copy._parameters = module._parameters | {
            key: nn.Parameter(state[key].to(base.device, base.dtype, copy=True), requires_grad=False)
            for key, base in module.named_parameters(recurse=False)
        }

    def _changed(self, module: nn.Module, x: Tensor, output: Tensor) -> Tensor:
        # Bypasses the hooks, of which this is one.
        return type(module).forward(self._copy, x)

    def tensors(self) -> list[Tensor]:
        return list(self._copy.parameters(recurse=False))


class ReplacedTokens(RowPart):
    """The adapter's own rows for some tokens, of the embedding or of the head.

    Args:
        tokens: N token ids.
        values: (N, C) their rows.
        module: of the base.
    """

    def __init__(
        self, name: str, context: ForwardContext, tokens: tuple[int, ...], values: Tensor, module: nn.Module
    ) -> None:
        super().__init__(name, context)
        weight = cast(nn.Parameter, module.weight)
        self._tokens = torch.tensor(tokens, device=weight.device)
        self._values = values.detach().to(weight.device, weight.dtype, copy=True)
        if isinstance(module, nn.Embedding) and (scale := getattr(module, "embed_scale", None)) is not None:
            self._values *= torch.as_tensor(scale, device=weight.device).to(weight.dtype)

    def _changed(self, module: nn.Module, x: Tensor, output: Tensor) -> Tensor:
        if isinstance(module, nn.Linear):
            return output.index_copy(-1, self._tokens, F.linear(x, self._values).to(output.dtype))
        matches = x.unsqueeze(-1) == self._tokens
        replaced = F.embedding(matches.int().argmax(-1), self._values)
        return torch.where(matches.any(-1, keepdim=True), replaced, output)

    def tensors(self) -> list[Tensor]:
        return [self._tokens, self._values]


class ExpertsPart(RowPart):
    """A module of the base with a method of `slim_core.baselines`, as that method computes it.

    Args:
        experts: the method at this module.
        tensors: as its `prepared` gives them.
    """

    def __init__(self, name: str, context: ForwardContext, experts: baselines.Experts, tensors: Tensors) -> None:
        super().__init__(name, context)
        self._experts, self._tensors = experts, tensors

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        rows = self._of(output)
        if rows is None:
            return None
        now, trace = Running(call=_past_hooks), self._context.trace
        if trace is not None:

            def record(probabilities: Tensor) -> None:
                weights = self._experts.weights(probabilities)
                trace.add_weights(self._experts.place.name, self._name, len(output), rows, weights)

            now.note = record
        x = args[0][rows].to(output.device)
        output[rows] = self._experts.forward(self._tensors, x, output[rows], module, now).to(output.dtype)
        return output

    def tensors(self) -> list[Tensor]:
        return list(self._tensors.values())


def _past_hooks(module: nn.Module, x: Tensor) -> Tensor:
    """What the base's own module gives, without what hooks and layers would do to the rows of a batch."""
    base = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
    return type(base).forward(base, x)


# Where a base keeps the parts of each adapter, with the handles of their hooks. On the model, since they hold it.
KEPT = "_row_parts"


def _kept_on(base: nn.Module) -> dict[str, list[tuple[RowPart, Any]]]:
    return base.__dict__.setdefault(KEPT, {})


@torch.no_grad()
def put_experts(
    base: nn.Module, name: str, context: ForwardContext, at: Iterable[tuple[baselines.Experts, Tensors]]
) -> None:
    """Give an adapter the experts of a method of `slim_core.baselines`.

    Args:
        base: the base model.
        name: of the adapter.
        context: of the base.
        at: the method at each of its places, with the tensors of the file.
    """
    for experts, tensors in at:
        module = _plain(base, experts.place.name)
        device = next(module.parameters()).device
        moved = {key: tensor.to(device, torch.float32) for key, tensor in tensors.items()}
        _hook(base, name, module, ExpertsPart(name, context, experts, experts.prepared(moved)))


def put_tables(
    base: nn.Module,
    name: str,
    copies: dict[str, dict[str, Tensor]],
    rows: dict[str, tuple[tuple[int, ...], Tensor]],
) -> None:
    """Give an attached adapter its own head, embedding or token rows.

    Args:
        base: the base model, to which the adapter is attached.
        name: of the adapter.
        copies: by module name, its parameters.
        rows: by module name, N token ids and their (N, C) rows.
    """
    context = context_of(base)
    assert context is not None  # the adapter is attached
    for place, state in copies.items():
        module = _plain(base, place)
        _hook(base, name, module, ReplacedModule(name, context, state, module))
    for place, (tokens, values) in rows.items():
        module = _plain(base, place)
        _hook(base, name, module, ReplacedTokens(name, context, tokens, values, module))


@torch.no_grad()
def put_magnitudes(base: nn.Module, name: str, magnitudes: dict[str, Tensor]) -> None:
    """Turn an attached LoRA into a DoRA. Both factors stay; B absorbs the magnitudes.

    Args:
        base: the base model, to which the LoRA is attached.
        name: of the adapter.
        magnitudes: (C_out,) by the name of each of its Linears.
    """
    for place, magnitude in magnitudes.items():
        layer = cast(SlimLayer, base.get_submodule(place))
        module = layer.get_base_layer()
        weight = dequantize_module_weight(module)
        if weight.is_mkldnn:  # packed by `inference.packed_linear`
            weight = weight.to_dense()  # type: ignore[assignment]  # as below
        if isinstance(module, Conv1D):
            weight = weight.t()  # type: ignore[assignment]  # PEFT's annotation says parameter, it is read alone
        a, b = layer.slim_A[name], layer.slim_B[name]
        whole = weight.to(b.dtype) + layer.scaling[name] * (b @ a)
        factor = magnitude.to(b.device, torch.float32) / torch.linalg.norm(whole, dim=1).float()
        b.mul_(factor.to(b.dtype).unsqueeze(1))
        _hook(base, name, module, Magnitudes(name, layer.context, factor))


def drop_parts(base: nn.Module, name: str) -> None:
    """Remove all parts of an adapter; does nothing if it has none."""
    parts = _kept_on(base)
    for _, handle in parts.pop(name, ()):
        handle.remove()
    if not parts:
        del base.__dict__[KEPT]


def part_tensors(base: nn.Module, name: str | None = None) -> Iterator[Tensor]:
    """Tensors that the parts of one adapter, or of all, keep in memory."""
    for owner, parts in base.__dict__.get(KEPT, {}).items():
        if name in (None, owner):
            for part, _ in parts:
                yield from part.tensors()


def _plain(base: nn.Module, place: str) -> nn.Module:
    """The base's own module, unwrapped."""
    module = base.get_submodule(place)
    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


def _hook(base: nn.Module, name: str, module: nn.Module, part: RowPart) -> None:
    _kept_on(base).setdefault(name, []).append((part, module.register_forward_hook(part)))
