# SPDX-License-Identifier: Apache-2.0
"""SLIM as a PEFT tuner: which modules get a layer, and what the method cannot do."""

from __future__ import annotations

import copy
from typing import Any, Optional

from peft.config import PeftConfig
from peft.tuners.tuners_utils import _maybe_include_all_linear_layers
from peft.utils.other import get_pattern_key
from torch import Tensor, nn

from .adapter_router import AdapterRouter
from .config import SlimConfig
from .extra_losses import add_extra_losses
from .fingerprint import difference, fingerprint
from .layer import NO_MERGE, SlimLayer
from .linear import Linear
from .quantised import guard_cpu_4bit
from .rows_model import RowsModel, check_name
from .targets import base_modules, check_heads, is_supported


# Linears of one block that read the same tensor, by their names in the usual decoders.
SAME_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
# In a module with such a name, which attends to an encoder, q reads the decoder's tokens and the others the encoder's.
CROSS_ATTENTION = ("encoder_attn", "cross_attn", "crossattention", "cross_attention")
SAME_INPUT_ACROSS = (("k_proj", "v_proj"),)


class SlimModel(RowsModel):
    """Adds SLIM adapters to a pretrained model.

    The method is described in "SLIM: Let LLM Learn More and Forget Less with Soft LoRA and Identity Mixture",
    https://aclanthology.org/2025.naacl-long.246.

    Args:
        model (`torch.nn.Module`): The model to be adapted.
        config (`SlimConfig`): The configuration.
        adapter_name (`str`): The name of the adapter.
        low_cpu_mem_usage (`bool`): Create empty adapter weights on the meta device, to be filled by loading.

    Returns:
        `torch.nn.Module`: The model with SLIM adapters.

    Example:

        ```py
        >>> from transformers import AutoModelForCausalLM
        >>> from peft import get_peft_model
        >>> from slim_core import SlimConfig

        >>> base = AutoModelForCausalLM.from_pretrained("Qwen/Qwen3-0.6B")
        >>> model = get_peft_model(base, SlimConfig(target_modules="all-linear"))
        ```

    **Attributes**:
        - **model** (`torch.nn.Module`) -- The adapted model.
        - **peft_config** (`dict[str, SlimConfig]`) -- The configuration of each adapter.
        - **context** (`ForwardContext`) -- What the layers need to know about a forward; shared by all of them.
    """

    prefix: str = "slim_"
    tuner_layer_cls = SlimLayer
    target_module_mapping: dict[str, list[str]] = {}

    def _add_losses(self, model: nn.Module, arguments: dict[str, Any], output: Any) -> Any:
        return add_extra_losses(model, arguments, output)

    # -- building ------------------------------------------------------------------------------------------------

    def _prepare_adapter_config(self, peft_config: PeftConfig, model_config: dict) -> SlimConfig:
        peft_config = _of_slim(peft_config)
        if peft_config.target_modules is None:
            peft_config.target_modules = "all-linear"
        return peft_config

    def _prepare_model(self, peft_config: PeftConfig, model: nn.Module) -> None:
        """Check everything that can be wrong before the first module is replaced."""
        peft_config = _of_slim(peft_config)
        guard_cpu_4bit(model)
        modules = base_modules(model)
        if str(peft_config.target_modules).lower() == "all-linear":
            peft_config._asked_for_all_linear = True
            _maybe_include_all_linear_layers(peft_config, model)
            # It also names what is inside of modules that another adapter saves whole.
            peft_config.target_modules = set(peft_config.target_modules or ()) & set(modules)
        targets = [name for name in modules if self._check_target_module_exists(peft_config, name)]
        for name in targets:
            if not is_supported(modules[name]):
                raise TypeError(
                    f"SLIM adapts nn.Linear, Conv1D and bitsandbytes' 4- and 8-bit Linears; `{name}` is a "
                    f"{type(modules[name]).__name__}. Leave it out of `target_modules` or name it in "
                    "`exclude_modules`."
                )
        if peft_config.distance_scope == "context" and peft_config.routed:
            check_heads(model, {name: modules[name] for name in targets})
        base_fingerprint = fingerprint(targets, modules)
        if peft_config._saved_fingerprint is not None:
            wrong = difference(peft_config._saved_fingerprint, base_fingerprint)
            if wrong is not None:
                raise ValueError(f"This SLIM adapter does not fit the base model. {wrong}")
        peft_config.base_fingerprint = base_fingerprint

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        check_name(adapter_name)
        config = _of_slim(self.peft_config[adapter_name])
        if config.base_fingerprint is not None:
            completed = self._completed(config, model)
            # Not by their names of the Linears: PEFT shortens these once there are many.
            linears = self._linears_of(config, model), self._linears_of(completed, model)
            if config.base_fingerprint != completed.base_fingerprint or linears[0] != linears[1]:
                # The config has been completed for another model, which may still be saved with it.
                self.peft_config[adapter_name] = completed
        super().inject_adapter(model, adapter_name, *args, **kwargs)

    def _linears_of(self, config: SlimConfig, model: nn.Module) -> set[str]:
        return {name for name in base_modules(model) if self._check_target_module_exists(config, name)}

    def _completed(self, config: SlimConfig, model: nn.Module) -> SlimConfig:
        """A copy of a config, completed for this model even if it was used on another one before."""
        completed = copy.deepcopy(config)
        if completed._asked_for_all_linear:
            completed.target_modules = "all-linear"
        self._prepare_adapter_config(completed, {})
        self._prepare_model(completed, model)
        return completed

    def _create_and_replace(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: Optional[str] = None,
    ) -> None:
        config = _of_slim(peft_config)
        r = config.rank_pattern.get(get_pattern_key(list(config.rank_pattern), current_key), config.r)
        alpha = config.alpha_pattern.get(get_pattern_key(list(config.alpha_pattern), current_key), config.alpha)
        shared = _router_of_sibling(config, adapter_name, target, current_key, parent)
        if isinstance(target, SlimLayer):
            target.update_layer(adapter_name, config, r, alpha, shared)
            return
        layer = Linear(target, adapter_name, config, r, alpha, self.context, current_key, shared)
        # A new module is in training mode; the model it joins may not be.
        layer.train(target.training)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    # -- what SLIM cannot do -------------------------------------------------------------------------------------

    def _check_merge_allowed(self) -> None:
        raise NotImplementedError(NO_MERGE)

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: PeftConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        for module in model.modules():
            if isinstance(module, SlimLayer):
                module.check_whole(adapter_name)
        return super()._get_adapter_state_dict(model, config, adapter_name, state_dict, unwanted_adapter_names)

    def add_weighted_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Not for SLIM: each adapter has a router of its own.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            "SLIM adapters cannot be combined into one: each has a router of its own. Activate several with "
            "`set_adapter`, or export them with `slim_core.export_lora` and combine the LoRAs."
        )


def _of_slim(config: PeftConfig) -> SlimConfig:
    """PEFT declares a tuner's methods for any config, and callers may pass the config of another method."""
    if not isinstance(config, SlimConfig):
        raise TypeError(f"SlimModel takes a SlimConfig, not a {type(config).__name__}.")
    return config


def _router_of_sibling(
    config: SlimConfig, adapter_name: str, target: nn.Module, key: str, parent: nn.Module
) -> AdapterRouter | None:
    """The router that this Linear, named `key`, shares with another of its block, with `router_scope="block"`."""
    if config.router_scope != "block" or not config.routed:
        return None
    *_, parent_name, target_name = ["", *key.split(".")]
    across = any(name in parent_name for name in CROSS_ATTENTION)
    for group in SAME_INPUT_ACROSS if across else SAME_INPUT:
        if target_name not in group:
            continue
        for name in group:
            sibling = getattr(parent, name, None)
            if isinstance(sibling, SlimLayer) and adapter_name in sibling.slim_router and sibling is not target:
                return sibling.routers[adapter_name]
    return None
