# SPDX-License-Identifier: Apache-2.0
"""The PEFT layer of a method around one module of the base."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar, Optional

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import resolve_quantization_backend
from torch import Tensor, nn

from ..method import ForwardContext, in_backward
from .config import ExpertsConfig
from .experts import Experts, Noted, Running
from .notes import Notes
from .places import Place


NO_MERGE = "This adapter cannot be merged into the base's weights: what it adds depends on each token."


def containers(experts: type[Experts]) -> tuple[str, ...]:
    """Names of the containers that hold a method's tensors, for `adapter_layer_names`."""
    return tuple(experts.prefix + key for key in experts.keys)


class ExpertsLayer(nn.Module, BaseTunerLayer):
    """State and forward of a method's adapters at one place, each container keyed by adapter name.

    Each method has a class of its own, which names its `experts` and the containers of its tensors.

    Args:
        base_layer: the module of the base.
        context: what the layers need to know about a forward.
        notes: takes what the losses need.
        place: which module it is.
    """

    experts_cls: ClassVar[type[Experts]]
    other_param_names: tuple[str, ...] = ("experts",)

    def __init__(self, base_layer: nn.Module, context: ForwardContext, notes: Notes, place: Place) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.context, self.notes, self.place = context, notes, place
        self.quantization_backend = resolve_quantization_backend(self.get_base_layer())
        for name in self.adapter_layer_names:
            setattr(self, name, nn.ParameterDict({}))
        self.experts: dict[str, Experts] = {}
        self._disable_adapters = False
        self.merged_adapters = []

    def update_layer(self, adapter_name: str, config: ExpertsConfig) -> None:
        """Add an adapter."""
        experts = self.experts[adapter_name] = self.experts_cls(config, self.place)
        tensors = {key: torch.empty(shape) for key, shape in experts.shapes().items()}
        experts.start(tensors)
        for key, tensor in tensors.items():
            getattr(self, experts.prefix + key)[adapter_name] = nn.Parameter(tensor)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        # PEFT's own version casts to the base's dtype, also after loading, and so rounds a float32 file.
        if device is None:
            device = next(self.get_base_layer().parameters()).device
        for name in self.adapter_layer_names:
            container = getattr(self, name)
            if adapter_name in container and container[adapter_name].device.type != "meta" and device.type != "meta":
                container[adapter_name] = container[adapter_name].to(device)

    def tensors(self, adapter_name: str) -> dict[str, Tensor]:
        """The tensors of an adapter by key."""
        prefix = self.experts_cls.prefix
        containers = ((key, getattr(self, prefix + key)) for key in self.experts_cls.keys)
        return {key: container[adapter_name] for key, container in containers if adapter_name in container}

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(..., C_in) to the module's output, in its dtype."""
        if self.disable_adapters:
            return self.base_layer(x, *args, **kwargs)
        if self.context.rows is None:
            active = [name for name in self.active_adapters if name in self.experts]
            return self._of_adapters(active, x) if active else self.base_layer(x, *args, **kwargs)
        result = self.base_layer(x, *args, **kwargs)
        if self.quantization_backend is not None:
            result = self.quantization_backend.maybe_clone_base_result(result)
        for name, rows in self.context.rows.by_adapter(len(x), x.device).items():
            if name in self.experts:
                result[rows] = self._of_adapter(name, x[rows], result[rows])
        return result

    def _of_adapters(self, names: list[str], x: Tensor) -> Tensor:
        """All adapters at once: their changes are added up."""
        result = self._of_adapter(names[0], x, None)
        if len(names) == 1:
            return result
        base = self.base_layer(x)
        return result + sum(self._of_adapter(name, x, base) - base for name in names[1:])

    def _of_adapter(self, name: str, x: Tensor, output: Tensor | None) -> Tensor:
        experts, tensors = self.experts[name], self.tensors(name)
        learning = self.training and next(iter(tensors.values())).requires_grad
        now = Running(learning=learning)
        if learning and experts.wants_losses(experts.config) and not in_backward():
            self.context.losses.expect()
            now.note = partial(self._note, name)
        return experts.forward(tensors, x, output, self.base_layer, now)

    def _note(self, name: str, probabilities: Tensor) -> None:
        sequences, forward = self.context.sequences, self.context.forward_number
        if forward is None:
            return
        valid, batch = (None, None) if sequences is None else (sequences.flat_valid, sequences.batch)
        self.notes.add(forward, name, Noted(self.place, probabilities, valid, batch, self.notes.types))

    def merge(self, safe_merge: bool = False, adapter_names: Optional[list[str]] = None) -> None:
        raise NotImplementedError(NO_MERGE)

    def unmerge(self) -> None:
        raise NotImplementedError(NO_MERGE)

    def delete_adapter(self, adapter_name: str) -> None:
        super().delete_adapter(adapter_name)
        self.notes.forget(adapter_name)

    def __repr__(self) -> str:
        return self.experts_cls.prefix.rstrip("_") + "." + super().__repr__()
