# SPDX-License-Identifier: Apache-2.0
"""One target Linear with its LoRA experts, identity experts and router."""

from __future__ import annotations

import math
from typing import Optional

import torch
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import resolve_quantization_backend
from torch import nn

from . import merging
from .adapter_router import AdapterRouter
from .config import SlimConfig
from .context import ForwardContext
from .sliding_clusters import SlidingClusters, StatisticDict
from .targets import features


NO_MERGE = (
    "A SLIM adapter cannot be merged into the base weights: its router decides for each text. To get a plain LoRA "
    "that can be merged, freeze the mean routing with `slim_core.export_lora`."
)


# Logit with which identity experts start if there is a gate. The gate already lets unfamiliar contexts bypass LoRA;
# what is left to learn is the task, and the LoRA experts learn nothing from the share that goes to an identity expert.
IDENTITY_START = -2.0


class SlimLayer(BaseTunerLayer):
    """State of the SLIM adapters around one Linear, each container keyed by adapter name.

    Attributes:
        slim_A: (E r, C_in) stacked first factors.
        slim_B: (C_out, E r) stacked second factors.
        slim_router: (E + I, C_in) router weight, absent if there is no routing or a sibling's router is
            shared; next to it `slim_router_bias`, and `slim_router_down` and `slim_router_up` with `router_hidden`.
        slim_center: (N, C_in) float32 cluster centres; next to it `slim_var` and `slim_count` (N,) int64.
        slim_token_mean: (1, C_in) float32 running mean of the tokens, and `slim_token_var` their variance, by which
            the router's input is normalised where the distance is that of the context.
        slim_reference: (levels, buckets) float32 running quantiles of the distance by the length of the context,
            unless `yield_mode="paper"`; in adapters of format 1 one quantile, ().
        slim_columns: (C_in,) bool columns of A that survive dynamic merging at inference; `slim_rows` (C_out,) of B.
    """

    training: bool
    slim_A: nn.ParameterDict
    slim_B: nn.ParameterDict
    slim_router: nn.ParameterDict
    slim_router_bias: nn.ParameterDict
    slim_router_down: nn.ParameterDict
    slim_router_up: nn.ParameterDict
    slim_center: StatisticDict
    slim_var: StatisticDict
    slim_count: StatisticDict
    slim_token_mean: StatisticDict
    slim_token_var: StatisticDict
    slim_reference: StatisticDict
    # One flat ParameterDict for each tensor: PEFT takes adapter names out of the keys of a file only there.
    router_names: tuple[str, ...] = ("slim_router", "slim_router_bias", "slim_router_down", "slim_router_up")
    adapter_layer_names: tuple[str, ...] = ("slim_A", "slim_B", *router_names)
    statistic_names: tuple[str, ...] = SlidingClusters.NAMES
    other_param_names: tuple[str, ...] = (
        *statistic_names,
        "slim_columns",
        "slim_rows",
        "slim_column_index",
        "slim_row_index",
        "slim_config",
        "scaling",
        "folded",
        "routers",
    )

    def __init__(self, base_layer: nn.Module, context: ForwardContext, module_name: str) -> None:
        self.base_layer = base_layer
        self.context = context
        self.module_name = module_name
        self.quantization_backend = resolve_quantization_backend(self.get_base_layer())
        self.in_features, self.out_features = features(self.get_base_layer())
        for name in self.adapter_layer_names:
            setattr(self, name, nn.ParameterDict({}))
        for name in self.statistic_names:
            setattr(self, name, StatisticDict())
        self.slim_columns = BufferDict({}, persistent=True)
        self.slim_rows = BufferDict({}, persistent=True)
        # Filled by `slice_factors`: which columns and rows the sliced factors still have.
        self.slim_column_index = BufferDict({}, persistent=False)
        self.slim_row_index = BufferDict({}, persistent=False)
        self.slim_config: dict[str, SlimConfig] = {}
        self.scaling: dict[str, float] = {}
        # Adapters whose masks and scaling are part of their factors; see `slim_core.fold_masks`.
        self.folded: dict[str, bool] = {}
        # Of the adapters that have something to route. Linears of a block may hold the same one.
        self.routers: dict[str, AdapterRouter] = {}
        self._disable_adapters = False
        self.merged_adapters = []

    # -- building ------------------------------------------------------------------------------------------------

    def update_layer(
        self, adapter_name: str, config: SlimConfig, r: int, alpha: float, shared: AdapterRouter | None = None
    ) -> None:
        """Add an adapter.

        Args:
            adapter_name: its name.
            config: its configuration.
            r: rank of each expert in this module.
            alpha: scaling numerator in this module.
            shared: the router of another Linear of the block, with its clusters; None for one of its own.
        """
        total = config.num_experts * r
        self.slim_config[adapter_name] = config
        self.scaling[adapter_name] = config.scaling(r, alpha) * merging.survivor_scale(
            0.0 if config.merge == "none" else config.mask_rate, config.mask_rescale
        )
        self.slim_A[adapter_name] = nn.Parameter(torch.empty(total, self.in_features))
        self.slim_B[adapter_name] = nn.Parameter(torch.zeros(self.out_features, total))
        nn.init.kaiming_uniform_(self.slim_A[adapter_name], a=math.sqrt(5))
        if not config.init_weights:
            nn.init.kaiming_uniform_(self.slim_B[adapter_name], a=math.sqrt(5))
        if shared is not None:
            shared.readers += 1
            self.routers[adapter_name] = shared
        elif config.routed:
            self.routers[adapter_name] = self._new_router(adapter_name, config)
        if config.merge == "fast" and config.mask_rate > 0:
            generator = torch.Generator().manual_seed(merging.module_seed(config.mask_seed, self.module_name))
            columns, rows = merging.fast_masks(
                self.in_features, self.out_features, config.mask_rate, generator=generator
            )
            self.slim_columns[adapter_name], self.slim_rows[adapter_name] = columns, rows
        # As PEFT does it: a new adapter takes the base's dtype, which `autocast_adapter_dtype` then raises.
        self._move_adapter(adapter_name, None, keep_dtype=self.statistic_names)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _new_router(self, adapter_name: str, config: SlimConfig) -> AdapterRouter:
        experts = config.num_experts + config.num_identity
        # A small weight, so that a new router sends tokens to all experts.
        self.slim_router[adapter_name] = nn.Parameter(torch.empty(experts, self.in_features).normal_(std=0.02))
        bias = torch.zeros(experts)
        if config.yield_mode == "gate":
            bias[config.num_experts :] = IDENTITY_START
        self.slim_router_bias[adapter_name] = nn.Parameter(bias)
        if config.router_hidden:
            down = torch.empty(config.router_hidden, self.in_features)
            self.slim_router_down[adapter_name] = nn.Parameter(nn.init.kaiming_uniform_(down, a=math.sqrt(5)))
            self.slim_router_up[adapter_name] = nn.Parameter(torch.zeros(self.in_features, config.router_hidden))
        if config.distance_scope == "context":
            self.context.contextual.add(adapter_name)
        clusters = SlidingClusters(
            adapter_name,
            config,
            {name: getattr(self, name) for name in self.statistic_names},
            self.in_features,
            self.context,
            merging.module_seed(config.mask_seed, self.module_name),
        )
        weights = {name: getattr(self, name) for name in self.router_names}
        return AdapterRouter(adapter_name, config, weights, clusters, self.context, self.module_name)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        # PEFT calls this after loading. Its own version casts to the base's dtype and so rounds a float32 file on a
        # bfloat16 base.
        self._move_adapter(adapter_name, device, keep_dtype=self.adapter_layer_names + self.statistic_names)

    def _move_adapter(self, adapter_name: str, device: torch.device | None, keep_dtype: tuple[str, ...]) -> None:
        kept = {n: getattr(self, n)[adapter_name] for n in keep_dtype if adapter_name in getattr(self, n)}
        super()._move_adapter_to_device_of_base_layer(adapter_name, device)
        for name, tensor in kept.items():
            container = getattr(self, name)
            container[adapter_name] = tensor.to(container[adapter_name].device)

    def merge(self, safe_merge: bool = False, adapter_names: Optional[list[str]] = None) -> None:
        raise NotImplementedError(NO_MERGE)

    def unmerge(self) -> None:
        raise NotImplementedError(NO_MERGE)

    def check_whole(self, adapter_name: str) -> None:
        """Raises RuntimeError if the adapter's factors were sliced or hold the masks."""
        if adapter_name in self.folded:
            raise RuntimeError(
                f"The masks of adapter {adapter_name!r} were folded into its factors for inference: it can no longer "
                "be saved, sliced or trained. Do that before `fold_masks`, or load it again."
            )
        if adapter_name in self.slim_column_index:
            raise RuntimeError(
                f"The factors of adapter {adapter_name!r} were sliced for inference and can no longer be saved or "
                "trained. Save the adapter before `slim_core.slice_factors`, or load it again."
            )

    def _is_learning(self, adapter_name: str) -> bool:
        # A frozen adapter in a model that is in training mode neither slides its clusters nor draws new masks.
        return self.training and self.slim_A[adapter_name].requires_grad

    def delete_adapter(self, adapter_name: str) -> None:
        super().delete_adapter(adapter_name)
        self.context.forget(adapter_name)
