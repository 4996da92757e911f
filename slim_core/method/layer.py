# SPDX-License-Identifier: Apache-2.0
"""One target Linear with its LoRA experts, identity experts and router."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, Optional

import torch
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer, _get_in_out_features
from peft.utils import resolve_quantization_backend
from torch import Tensor, nn

from . import clusters, merging
from .config import SlimConfig
from .context import ForwardContext, in_backward
from .contexts import LENGTH_BUCKETS, Contexts, Sequences
from .learning import ClusterLearner, PendingSums, entry
from .losses import balance_term
from .one_token import TokenRouter
from .routing import ClusterTables, Router, Routing, Yielding, cluster_tables, route


NO_MERGE = (
    "A SLIM adapter cannot be merged into the base weights: its router decides for each token. To get a plain LoRA "
    "that can be merged, freeze the mean routing with `slim_core.export_lora`."
)


# Logit with which identity experts start beside a gate. The gate already lets foreign contexts past; what is left to
# learn is the task, and what a token loses to an identity expert teaches the LoRA experts nothing.
IDENTITY_START = -2.0


class StatisticDict(BufferDict):
    """Buffers that move between devices but keep their dtype: `model.bfloat16()` must not round the clusters."""

    def __init__(self) -> None:
        super().__init__({}, persistent=True)

    def _apply(self, fn, recurse=True):
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, old in before.items():
            new = self._buffers[name]
            if new.dtype != old.dtype:
                self._buffers[name] = old.to(new.device)
        return self


class _KeptTables(NamedTuple):
    """Cluster tables and reference distances, and the state of the statistics that they were made from."""

    statistics: tuple[Tensor | None, ...]
    versions: tuple[int | float | None, ...]
    tables: ClusterTables
    reference: Tensor | None


class _SharedRouting(NamedTuple):
    """A routing that the Linears of one block share (`router_scope="block"`).

    Attributes:
        x: the input that it belongs to, and `version`, by which one sees that it was written to since.
        routing: of that input.
        readers: how many of the Linears have read it.
    """

    x: Tensor
    version: int
    routing: Routing
    readers: int


def _full_precision(x: Tensor) -> AbstractContextManager:
    # Entering the context costs as much as a few of the operations inside, so it is entered only where it matters.
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


class SlimLayer(ClusterLearner, BaseTunerLayer):
    """State of the SLIM adapters around one Linear, each container keyed by adapter name.

    Attributes:
        slim_A: (E r, C_in) stacked first factors.
        slim_B: (C_out, E r) stacked second factors.
        slim_router: (E + I, C_in) router weight, absent where there is nothing to route or a sibling's router is
            shared; next to it `slim_router_bias`, and `slim_router_down` and `slim_router_up` with `router_hidden`.
        slim_center: (N, C_in) float32 cluster centres; next to it `slim_var` and `slim_count` (N,) int64.
        slim_token_mean: (1, C_in) float32 running mean of the tokens, and `slim_token_var` their variance, by which
            the router's input is normalised where the distance is that of the context.
        slim_reference: (levels, buckets) float32 running quantiles of the distance by the length of the context,
            unless `yield_mode="paper"`; in adapters of format 1 one quantile, ().
        slim_columns: (C_in,) bool columns of A that survive dynamic merging at inference; `slim_rows` (C_out,) of B.
    """

    # One flat ParameterDict for each tensor: PEFT takes adapter names out of the keys of a file only there.
    router_names: tuple[str, ...] = ("slim_router", "slim_router_bias", "slim_router_down", "slim_router_up")
    adapter_layer_names: tuple[str, ...] = ("slim_A", "slim_B", *router_names)
    statistic_names: tuple[str, ...] = (
        "slim_center",
        "slim_var",
        "slim_count",
        "slim_token_mean",
        "slim_token_var",
        "slim_reference",
    )
    other_param_names: tuple[str, ...] = (
        *statistic_names,
        "slim_columns",
        "slim_rows",
        "slim_column_index",
        "slim_row_index",
        "slim_config",
        "scaling",
        "_folded",
        "pending",
        "_sequences",
        "_valid",
        "_started",
        "_tables",
        "_router_owner",
        "_router_readers",
        "_shared_routing",
    )

    def __init__(self, base_layer: nn.Module, context: ForwardContext, module_name: str) -> None:
        self.base_layer = base_layer
        self.context = context
        self.module_name = module_name
        self.quantization_backend = resolve_quantization_backend(self.get_base_layer())
        self.in_features, self.out_features = _get_in_out_features(self.get_base_layer())
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
        # Adapters whose masks and scaling are part of their factors; see `fold_masks`.
        self._folded: dict[str, bool] = {}
        self.pending: dict[str, PendingSums] = {}
        self._sequences: dict[str, Sequences | None] = {}
        self._valid: dict[str, Tensor | None] = {}
        self._started: dict[str, bool] = {}
        self._tables: dict[str, _KeptTables] = {}
        # A list, so that torch does not take the owner for a submodule of this layer.
        self._router_owner: dict[str, list[SlimLayer]] = {}
        self._router_readers: dict[str, int] = {}
        self._shared_routing: dict[str, Optional[_SharedRouting]] = {}
        self._disable_adapters = False
        self.merged_adapters = []

    # -- building ------------------------------------------------------------------------------------------------

    def update_layer(
        self, adapter_name: str, config: SlimConfig, r: int, alpha: float, owner: SlimLayer | None = None
    ) -> None:
        """Add an adapter.

        Args:
            adapter_name: its name.
            config: its configuration.
            r: rank of each expert in this module.
            alpha: scaling numerator in this module.
            owner: the sibling whose router and clusters this module shares; None for its own.
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
        if config.routed and owner is None:
            self._add_router(adapter_name, config)
        elif owner is not None:
            self._router_owner[adapter_name] = [owner]
            owner._router_readers[adapter_name] = owner._router_readers.get(adapter_name, 1) + 1
        if config.merge == "fast" and config.mask_rate > 0:
            generator = torch.Generator().manual_seed(merging.module_seed(config.mask_seed, self.module_name))
            columns, rows = merging.fast_masks(
                self.in_features, self.out_features, config.mask_rate, generator=generator
            )
            self.slim_columns[adapter_name], self.slim_rows[adapter_name] = columns, rows
        # As PEFT does it: a new adapter takes the base's dtype, which `autocast_adapter_dtype` then raises.
        self._move_adapter(adapter_name, None, keep_dtype=self.statistic_names)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _add_router(self, adapter_name: str, config: SlimConfig) -> None:
        experts = config.num_experts + config.num_identity
        # A small weight, so that a new router sends tokens everywhere.
        self.slim_router[adapter_name] = nn.Parameter(torch.empty(experts, self.in_features).normal_(std=0.02))
        bias = torch.zeros(experts)
        if config.yield_mode == "gate":
            bias[config.num_experts :] = IDENTITY_START
        self.slim_router_bias[adapter_name] = nn.Parameter(bias)
        if config.router_hidden:
            down = torch.empty(config.router_hidden, self.in_features)
            self.slim_router_down[adapter_name] = nn.Parameter(nn.init.kaiming_uniform_(down, a=math.sqrt(5)))
            self.slim_router_up[adapter_name] = nn.Parameter(torch.zeros(self.in_features, config.router_hidden))
        shape = (config.num_clusters, self.in_features)
        # A first batch replaces the zeros; until then a token is its own z.
        random = config.cluster_init == "random"
        self.slim_center[adapter_name] = torch.randn(shape) if random else torch.zeros(shape)
        self.slim_var[adapter_name] = torch.ones(shape)
        self.slim_count[adapter_name] = torch.zeros(config.num_clusters, dtype=torch.int64)
        contextual = config.distance_scope == "context"
        if contextual:
            self.slim_token_mean[adapter_name] = torch.zeros(1, self.in_features)
            self.slim_token_var[adapter_name] = torch.ones(1, self.in_features)
            self.context.contextual.add(adapter_name)
        if config.yield_mode == "paper":
            return
        if config.format_version == 1:
            self.slim_reference[adapter_name] = torch.zeros(())
        else:
            buckets = LENGTH_BUCKETS if contextual else 1
            self.slim_reference[adapter_name] = torch.full((len(clusters.LEVELS), buckets), clusters.UNSEEN)

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

    def slice_factors(self, adapter_name: str) -> None:
        """Keep only the rows and columns that survive dynamic merging: fewer bytes and FLOPs, the same output."""
        if adapter_name not in self.slim_columns or adapter_name in self.slim_column_index:
            return
        self.check_whole(adapter_name)
        columns = self.slim_columns[adapter_name].nonzero().flatten()
        rows = self.slim_rows[adapter_name].nonzero().flatten()
        a, b = self.slim_A[adapter_name], self.slim_B[adapter_name]
        self.slim_A[adapter_name] = nn.Parameter(a.detach()[:, columns].contiguous(), requires_grad=False)
        self.slim_B[adapter_name] = nn.Parameter(b.detach()[rows].contiguous(), requires_grad=False)
        self.slim_column_index[adapter_name], self.slim_row_index[adapter_name] = columns, rows

    def fold_masks(self, adapter_name: str) -> None:
        """Multiply the masks and the scaling into the factors, and put each expert's into one piece of memory: fewer
        operations, the same output but for rounding.
        """
        entrywise = self.slim_config[adapter_name].merge == "dare"
        if entrywise or adapter_name in self.slim_column_index or adapter_name in self._folded:
            return
        a, b = self.slim_A[adapter_name].detach(), self.slim_B[adapter_name].detach() * self.scaling[adapter_name]
        if adapter_name in self.slim_columns:
            a = a * self.slim_columns[adapter_name]
            b = b * self.slim_rows[adapter_name].unsqueeze(1)
        self.slim_A[adapter_name] = nn.Parameter(a, requires_grad=False)
        self.slim_B[adapter_name] = nn.Parameter(b.t().contiguous().t(), requires_grad=False)
        self._folded[adapter_name] = True

    def check_whole(self, adapter_name: str) -> None:
        """Raises RuntimeError if the adapter's factors were sliced or hold the masks."""
        if adapter_name in self._folded:
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

    # -- routing -------------------------------------------------------------------------------------------------

    def _routing(self, adapter_name: str, x: Tensor, whole_x: Tensor) -> Routing:
        """Routing of the tokens `x`, (T, C_in). `whole_x` is the layer's input, by which siblings know each other."""
        owner = self._router_owner.get(adapter_name, [self])[0]
        readers = owner._router_readers.get(adapter_name, 1)
        if readers == 1:
            return owner._compute_routing(adapter_name, x, whole_x)
        held = owner._shared_routing.get(adapter_name)
        countless = torch.compiler.is_compiling() or whole_x.is_inference()
        version = 0 if countless else whole_x._version
        if held is None or held.x is not whole_x or held.version != version:
            held = _SharedRouting(whole_x, version, owner._compute_routing(adapter_name, x, whole_x), 0)
        held = held._replace(readers=held.readers + 1)
        # The last reader lets go of the activations.
        owner._shared_routing[adapter_name] = held if held.readers < readers else None
        return held.routing

    def _compute_routing(self, adapter_name: str, x: Tensor, whole_x: Tensor) -> Routing:
        config = self.slim_config[adapter_name]
        x = x.float()
        learning = self._is_learning(adapter_name)
        repeated = learning and in_backward()
        if not repeated:
            self._slide_earlier(adapter_name, learning)
        sequences = self._sequences[adapter_name] if repeated else self._read(adapter_name, whole_x, learning)
        contexts = None
        with _full_precision(x):
            if config.distance_scope == "context":
                contexts = self._contexts(adapter_name, x, whole_x, sequences)
            if learning and not repeated:
                self._prepare_to_learn(adapter_name, x, contexts)
            tables, reference = self._tables_of(adapter_name)
            routing = route(
                x,
                tables,
                self._router(adapter_name),
                num_experts=config.num_experts,
                top_k=config.top_k,
                statistic=config.distance,
                yielding=self._yielding(adapter_name, config, reference, contexts, len(x)),
                context=None if contexts is None else contexts.mean,
            )
            if learning:
                self._balance(adapter_name, config, routing, repeated)
                if not repeated:
                    self._learn_from(adapter_name, config, routing, x, contexts)
        return routing

    def _read(self, adapter_name: str, whole_x: Tensor, learning: bool) -> Sequences | None:
        """The sequences of the layer's input; None if it holds other tokens than the model was given."""
        found = self.context.sequences
        if found is not None:
            found = found.of_input(whole_x)
        elif self.slim_config[adapter_name].distance_scope == "context":
            # No model said what it was given: each row is a sequence of its own.
            tokens = whole_x[0].numel() // self.in_features
            found = Sequences(len(whole_x), tokens)
        if learning:
            # Kept for the forward that gradient checkpointing repeats when the model's is over.
            self._sequences[adapter_name] = found
            self._valid[adapter_name] = None if found is None else found.flat_valid
        return found

    @torch.no_grad()
    def _contexts(self, adapter_name: str, x: Tensor, whole_x: Tensor, sequences: Sequences | None) -> Contexts:
        if sequences is None:
            raise ValueError(
                f"`{self.module_name}` was given an input of shape {list(whole_x.shape)}, which is not the tokens "
                "that the model read, so their contexts are not known. Leave it out of `target_modules`, or train "
                'with distance_scope="token".'
            )
        rows = self._rows_of_batch(adapter_name, sequences.batch, x.device)
        opening = tuple(self.slim_config[adapter_name].turn_opening or ())
        return sequences.contexts(self._key(adapter_name), opening, x.detach(), rows)

    def _key(self, adapter_name: str) -> str:
        return f"{self.module_name} of {adapter_name}"

    def _rows_of_batch(self, adapter_name: str, batch: int, device: torch.device) -> slice | Tensor | None:
        if self.context.adapter_names is None:
            return None
        return dict(self.context.rows(batch, device))[adapter_name]

    def _yielding(
        self, adapter_name: str, config: SlimConfig, reference: Tensor | None, contexts: Contexts | None, tokens: int
    ) -> Yielding:
        closed = None
        if reference is not None and reference.dim():
            reference = reference[0] if contexts is None else reference[contexts.bucket]
        if contexts is not None and config.context_warmup:
            closed = contexts.count <= config.context_warmup
        strength: float | Tensor = config.yield_strength
        if self.context.strengths is not None:
            of_rows = self.context.strengths_of(adapter_name, strength, self.slim_center[adapter_name].device)
            strength = of_rows.repeat_interleave(tokens // len(of_rows))
        return Yielding(config.yield_mode, strength, reference, closed)

    def token_router(self, adapter_name: str) -> TokenRouter:
        """The adapter's router for rows of one token; one while `adapter_names` are set, for all that share it."""
        routers = self.context.token_routers
        key = (self, adapter_name)
        if key not in routers:
            self._slide_earlier(adapter_name, learning=False)
            tables, reference = self._tables_of(adapter_name)
            routers[key] = TokenRouter(
                self.slim_config[adapter_name],
                tables,
                self._router(adapter_name),
                reference,
                self._router_readers.get(adapter_name, 1),
                self._key(adapter_name),
            )
        return routers[key]

    def _router(self, adapter_name: str) -> Router:
        weights = (entry(getattr(self, name), adapter_name) for name in self.router_names)
        return Router(*weights, entry(self.slim_token_mean, adapter_name), entry(self.slim_token_var, adapter_name))

    def _balance(self, adapter_name: str, config: SlimConfig, routing: Routing, repeated: bool) -> None:
        if not config.balance_coefficient:
            return
        # Also when a checkpoint repeats the forward: it must save the same tensors again.
        term = balance_term(routing.logits, routing.weights, config.num_experts, self._valid[adapter_name])
        if not repeated:
            self.context.add_balance(adapter_name, term)

    def _tables_of(self, adapter_name: str) -> tuple[ClusterTables, Tensor | None]:
        """The clusters as `route` wants them, and the distances that count as in domain, () or (buckets,).

        They are kept from one decoding step to the next while the statistics do not change.
        """
        center, var = self.slim_center[adapter_name], self.slim_var[adapter_name]
        reference = entry(self.slim_reference, adapter_name)
        quantile = self.slim_config[adapter_name].yield_quantile

        def make() -> tuple[ClusterTables, Tensor | None]:
            several = reference is not None and reference.dim() == 2
            row = clusters.reference_row(reference, quantile) if several else reference
            return cluster_tables(center, var), row

        if self.training or torch.compiler.is_compiling() or center.is_inference():
            return make()
        versions = (center._version, var._version, None if reference is None else reference._version, quantile)
        kept = self._tables.get(adapter_name)
        statistics = (center, var, reference)
        same = kept is not None and all(a is b for a, b in zip(kept.statistics, statistics, strict=True))
        if not same or kept.versions != versions:
            # Also fit for a later forward with gradients, whatever mode this one runs in.
            with torch.inference_mode(False), torch.no_grad():
                kept = self._tables[adapter_name] = _KeptTables(statistics, versions, *make())
        return kept.tables, kept.reference
