# SPDX-License-Identifier: Apache-2.0
"""The PEFT tuner shared by all methods in this package; each has a subclass that names its layer."""

from __future__ import annotations

from typing import Any, Optional, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, _get_in_out_features
from torch import Tensor, nn

from ..method import RowsModel, add_to_loss, base_modules, check_name, guard_cpu_4bit, is_supported
from .config import ExpertsConfig
from .experts import Experts
from .layer import NO_MERGE, ExpertsLayer
from .notes import Notes
from .places import GATED, Place, block_of, blocks_of, gated_mlps, is_gated_mlp


class ExpertsModel(RowsModel):
    """Adds adapters of a method to a pretrained model.

    Args:
        model (`torch.nn.Module`): The model to be adapted.
        config (`ExpertsConfig`): The configuration.
        adapter_name (`str`): The name of the adapter.
        low_cpu_mem_usage (`bool`): Create empty adapter weights on the meta device, to be filled by loading.

    **Attributes**:
        - **model** (`torch.nn.Module`) -- The adapted model.
        - **peft_config** (`dict[str, ExpertsConfig]`) -- The configuration of each adapter.
        - **notes** (`Notes`) -- What the layers note for the losses.
    """

    tuner_layer_cls: type[ExpertsLayer]
    target_module_mapping: dict[str, list[str]] = {}

    def __init__(self, model: nn.Module, *args: Any, **kwargs: Any) -> None:
        notes = next((m.notes for m in model.modules() if isinstance(m, ExpertsLayer)), None)
        self.notes = Notes() if notes is None else notes
        super().__init__(model, *args, **kwargs)

    @property
    def _experts(self) -> type[Experts]:
        return self.tuner_layer_cls.experts_cls

    # -- building ------------------------------------------------------------------------------------------------

    # PEFT hands over configs of the method's own class.
    def _prepare_adapter_config(  # type: ignore[override]
        self, peft_config: ExpertsConfig, model_config: dict
    ) -> ExpertsConfig:
        return peft_config

    def _prepare_model(self, peft_config: ExpertsConfig, model: nn.Module) -> None:  # type: ignore[override]
        """Everything that can be wrong is found here, before the first module is replaced."""
        guard_cpu_4bit(model)
        modules = base_modules(model)
        head = getattr(model, "get_output_embeddings", lambda: None)()
        linears = {name: sizes for name, (module, sizes) in _linears(modules).items() if module is not head}
        if peft_config.target_modules is None:
            targets = self._experts.default_targets(linears)
            peft_config.target_modules = targets  # type: ignore[assignment]  # as PEFT itself keeps a list
        if str(peft_config.target_modules).lower() == "all-linear":
            if peft_config.layers_to_transform is not None:
                raise ValueError("`layers_to_transform` needs `target_modules` as a list of names.")
            # PEFT's own list of them knows no Linear inside of an adapted MLP.
            peft_config.target_modules = set(linears)  # type: ignore[assignment]
        blocks = blocks_of(linears)
        self._experts.resolve(peft_config, blocks)
        mlps = gated_mlps(linears) if "mlp" in self._experts.kinds else {}
        self._places = {}
        for name, module in modules.items():
            if self._check_target_module_exists(peft_config, name):
                self._places[name] = self._place(name, module, mlps, blocks)
        for name in self._places:
            mlp = next((above for above in mlps if above in self._places and name.startswith(above + ".")), None)
            if mlp is not None:
                raise ValueError(
                    f"`target_modules` names `{name}` and `{mlp}`, which contains it; leave one of them out."
                )

    def _place(self, name: str, module: nn.Module, mlps: dict[str, tuple[int, int]], blocks: int) -> Place:
        if is_supported(module):
            c_in, c_out = cast("tuple[int, int]", _get_in_out_features(module))
            return Place(name, "linear", c_in, c_out, block_of(name), blocks)
        if name in mlps and is_gated_mlp(module):
            return Place(name, "mlp", *mlps[name], block_of(name), blocks)
        also = " or a gated MLP (gate_proj, up_proj, down_proj)" if "mlp" in self._experts.kinds else ""
        raise TypeError(
            f"This method adapts nn.Linear, Conv1D and bitsandbytes' 4- and 8-bit Linears{also}; `{name}` is a "
            f"{type(module).__name__}. Leave it out of `target_modules` or name it in `exclude_modules`."
        )

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        check_name(adapter_name)
        super().inject_adapter(model, adapter_name, *args, **kwargs)

    def _create_and_replace(  # type: ignore[override]
        self,
        config: ExpertsConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: Optional[str] = None,
    ) -> None:
        if isinstance(target, ExpertsLayer):
            target.update_layer(adapter_name, config)
            return
        layer = self.tuner_layer_cls(target, self.context, self.notes, self._places[current_key])
        layer._active_adapter = adapter_name
        layer.update_layer(adapter_name, config)
        # A new module is in training mode; the model it joins may not be.
        layer.train(target.training)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    def _check_merge_allowed(self) -> None:
        raise NotImplementedError(NO_MERGE)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # PEFT's own version moves what has a weight of its own; a layer here has been moved already.
        setattr(parent, child_name, new_module)

    # -- losses --------------------------------------------------------------------------------------------------

    def _add_losses(self, model: nn.Module, inputs: dict[str, Any], output: Any) -> Any:
        return add_to_loss(model, inputs, output, self.context.losses, lambda: self._losses(model))

    def _losses(self, model: nn.Module) -> dict[str, Tensor]:
        layers = [module for module in model.modules() if isinstance(module, ExpertsLayer)]
        losses: dict[str, Tensor] = {}
        for name in self.active_adapters:
            places = [(layer.experts[name], layer.tensors(name)) for layer in layers if name in layer.experts]
            config = self.peft_config[name]
            if not places or not self._experts.wants_losses(config):
                continue
            noted = self.notes.of(name)
            if torch.is_grad_enabled() and not all(routed.probabilities.requires_grad for routed in noted):
                raise RuntimeError(
                    "The balance loss has no gradient: the forward ran without one, as with the reentrant kind of "
                    'gradient checkpointing. Pass gradient_checkpointing_kwargs={"use_reentrant": False}.'
                )
            for key, value in self._experts.losses(config, noted, places).items():
                losses[key] = losses[key] + value if key in losses else value
        return losses


def _linears(modules: dict[str, nn.Module]) -> dict[str, tuple[nn.Module, tuple[int, int]]]:
    """A base's Linears by name with their sizes, including those inside an adapted MLP."""
    linears = {}
    for name, module in modules.items():
        parts = {name: module}
        if is_gated_mlp(module):
            parts = {f"{name}.{part}": getattr(module, part) for part in GATED}
        for full_name, linear in parts.items():
            base = linear.get_base_layer() if isinstance(linear, BaseTunerLayer) else linear
            if is_supported(base):
                linears[full_name] = base, cast("tuple[int, int]", _get_in_out_features(base))
    return linears
