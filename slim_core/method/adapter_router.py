# SPDX-License-Identifier: Apache-2.0
"""How one adapter routes: the router's input, the contexts, and the experts."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .config import SlimConfig
from .context import ForwardContext, in_backward
from .contexts import Contexts, Sequences
from .gate import EarlierExcess, Yielding
from .gate_setting import GateSetting
from .losses import balance_term
from .routing import ClusterTables, Router, Routing, route
from .sequence_state import router_key
from .sliding_clusters import SlidingClusters, entry


class KeptTables(NamedTuple):
    """Cluster tables, reference distances and router, and the state of the tensors that they were made from."""

    sources: tuple[Tensor | None, ...]
    versions: tuple[int | float | None, ...]
    tables: ClusterTables
    reference: Tensor | None
    router: Router


class RowGates(NamedTuple):
    """What the rows of a batch ask of the gate.

    Attributes:
        of: the adapter's reference distances and strength that it was made from.
        strength: (rows,).
        references: (rows, buckets) distances that count as in domain; None if all rows have the adapter's own.
    """

    of: tuple[Tensor | None, float]
    strength: Tensor
    references: Tensor | None


class KeptExcesses(NamedTuple):
    """The excesses of earlier routers that a router was given in a training forward, for when checkpointing repeats
    it.

    Attributes:
        forward: number of the forward; None outside of one.
        calls: one for each time that the layer ran.
    """

    forward: int | None
    calls: list[EarlierExcess]


class SharedRouting(NamedTuple):
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
    # Entering the context costs as much as a few of the operations inside, so it is entered only if needed.
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


class AdapterRouter:
    """The router of one adapter at one Linear, or at the Linears of a block that read the same input.

    Its weights are in the containers of the first of these layers, which PEFT saves, moves and deletes from.

    Args:
        adapter_name: the adapter.
        config: its configuration.
        weights: the layer's containers of router weights, as `Router` has them.
        clusters: of this router.
        context: of the model.
        module_name: of the layer.

    Attributes:
        name: of the adapter.
        readers: how many Linears read its routing.
        key: by which a cache remembers its sums.
    """

    def __init__(
        self,
        adapter_name: str,
        config: SlimConfig,
        weights: Mapping[str, nn.ParameterDict],
        clusters: SlidingClusters,
        context: ForwardContext,
        module_name: str,
    ) -> None:
        self.name, self.config, self.clusters, self.module_name = adapter_name, config, clusters, module_name
        self.readers = 1
        self.key = router_key(module_name, adapter_name, context.deletions[adapter_name])
        self._weights, self._context = dict(weights), context
        # The sequences of the last training forward, and which of its tokens clusters learn from; None if all.
        self._sequences: Sequences | None = None
        self._valid: Tensor | None = None
        self._kept_excesses = KeptExcesses(None, [])
        self._tables: KeptTables | None = None
        self._shared: SharedRouting | None = None

    @property
    def opening(self) -> tuple[int, ...]:
        """The ids that open a turn; empty where none are looked for."""
        return tuple(self.config.turn_opening or ()) if self.config.distance_scope == "context" else ()

    def routing(self, x: Tensor, whole_x: Tensor, *, training: bool, learning: bool) -> Routing:
        """Route some tokens of a Linear's input.

        Args:
            x: (T, C_in) the tokens.
            whole_x: the whole input, by which Linears that share this router know each other.
            training: whether the Linear is in training mode.
            learning: whether the adapter learns too.

        Raises:
            ValueError: if contexts are asked for and the input is not the tokens that the model read.
        """
        if self.readers == 1:
            return self._route(x, whole_x, training, learning)
        shared = self._shared
        countless = torch.compiler.is_compiling() or whole_x.is_inference()
        version = 0 if countless else whole_x._version
        if shared is None or shared.x is not whole_x or shared.version != version:
            shared = SharedRouting(whole_x, version, self._route(x, whole_x, training, learning), 0)
        shared = shared._replace(readers=shared.readers + 1)
        # The last reader releases the activations.
        self._shared = shared if shared.readers < self.readers else None
        return shared.routing

    def _route(self, x: Tensor, whole_x: Tensor, training: bool, learning: bool) -> Routing:
        config = self.config
        x = x.float()
        repeated = learning and in_backward()
        if not repeated:
            self.clusters.fold_earlier(learning)
        sequences = self._sequences if repeated else self._read(whole_x, learning)
        contexts = None
        with _full_precision(x):
            if config.distance_scope == "context":
                contexts = self._contexts(x, whole_x, sequences)
            if learning and not repeated:
                self.clusters.start(x, contexts, self._valid)
            tables, reference, router = self.tables(training)
            earlier = self._earlier_excess(sequences, learning, repeated)
            routing = route(
                x,
                tables,
                router,
                num_experts=config.num_experts,
                top_k=config.top_k,
                statistic=config.distance,
                yielding=self._yielding(reference, contexts, earlier, len(x)),
                context=None if contexts is None else contexts.mean,
            )
            if earlier is not None and sequences is not None and not repeated:
                rows = self._rows_of_batch(sequences.batch, x.device)
                sequences.excess_sum(self.name).add(rows, routing.excess)
            if learning:
                self._balance(routing, repeated)
                if not repeated:
                    self.clusters.learn(routing, x, contexts, self._valid)
        return routing

    def _read(self, whole_x: Tensor, learning: bool) -> Sequences | None:
        """The sequences of the layer's input; None if its tokens are not the model's input tokens."""
        sequences = self._context.sequences
        if sequences is not None:
            sequences = sequences.of_input(whole_x)
        elif self.config.distance_scope == "context":
            tokens = whole_x[0].numel() // whole_x.shape[-1]
            sequences = self._context.each_row_alone(len(whole_x), tokens, whole_x.device)
        if learning:
            # Kept for the forward that gradient checkpointing repeats when the model's is over.
            self._sequences = sequences
            self._valid = None if sequences is None else sequences.learned_from(self.opening)
        return sequences

    @torch.no_grad()
    def _contexts(self, x: Tensor, whole_x: Tensor, sequences: Sequences | None) -> Contexts:
        if sequences is None:
            raise ValueError(
                f"`{self.module_name}` was given an input of shape {list(whole_x.shape)}, which is not the tokens "
                "that the model read, so their contexts are not known. Leave it out of `target_modules`, or train "
                'with distance_scope="token".'
            )
        rows = self._rows_of_batch(sequences.batch, x.device)
        return sequences.contexts(self.key, self.opening, x.detach(), rows, whole_x)

    def _earlier_excess(self, sequences: Sequences | None, learning: bool, repeated: bool) -> EarlierExcess | None:
        """The excesses of the adapter's routers before this one; None if each router follows its own excess."""
        if sequences is None or not self.config.carries_up:
            return None
        kept = self._kept_excesses
        if repeated:
            # If a layer runs twice in a forward, the backward pass reaches its last run first.
            return kept.calls.pop() if len(kept.calls) > 1 else kept.calls[0]
        rows = self._rows_of_batch(sequences.batch, sequences.device)
        earlier = sequences.excess_sum(self.name).so_far(rows, self.clusters.center.device)
        if learning:
            running = self._context.forward_number
            if running is None or kept.forward != running:
                kept = self._kept_excesses = KeptExcesses(running, [])
            kept.calls.append(earlier)
        return earlier

    def _rows_of_batch(self, batch: int, device: torch.device) -> slice | Tensor | None:
        if self._context.rows is None:
            return None
        return self._context.rows.by_adapter(batch, device)[self.name]

    def _yielding(
        self, reference: Tensor | None, contexts: Contexts | None, earlier: EarlierExcess | None, tokens: int
    ) -> Yielding:
        bucket, length = (None, None) if contexts is None else (contexts.bucket, contexts.length)
        strength: float | Tensor = self.config.yield_strength
        gates = self._row_gates(reference)
        if gates is not None:
            repeat = tokens // len(gates.strength)
            strength = gates.strength.repeat_interleave(repeat)
            if gates.references is not None:
                # The rows' references one after the other, and where each token's is among them.
                rows, buckets = gates.references.shape
                first = torch.arange(0, rows * buckets, buckets, device=strength.device).repeat_interleave(repeat)
                reference, bucket = gates.references.flatten(), first if bucket is None else first + bucket
        return Yielding.of(self.config, strength, reference, bucket=bucket, length=length, earlier=earlier)

    def _row_gates(self, reference: Tensor | None) -> RowGates | None:
        """What the rows of the batch ask of the gate; None if none asks for anything."""
        rows = self._context.rows
        settings = None if rows is None else rows.gates_of(self.name)
        if rows is None or settings is None:
            return None
        of = (reference, self.config.yield_strength)
        kept = rows.kept.get((RowGates, self))
        if kept is None or kept.of[0] is not reference or kept.of[1] != of[1]:
            # Usable for a later forward with gradients too, as the tables are.
            with torch.inference_mode(False), torch.no_grad():
                kept = self._new_row_gates(settings, of)
            if not torch.compiler.is_compiling():
                rows.kept[RowGates, self] = kept
        return kept

    def _new_row_gates(self, settings: list[GateSetting], of: tuple[Tensor | None, float]) -> RowGates:
        strengths, references = zip(*(self.gate_of(setting, of[0]) for setting in settings), strict=True)
        strength = torch.tensor(strengths, device=self.clusters.center.device)
        own = all(reference is of[0] for reference in references)
        return RowGates(of, strength, None if own else torch.stack(references))

    def gate_of(self, setting: GateSetting, reference: Tensor | None) -> tuple[float, Tensor | None]:
        """The strength of a row, and the distances that count as in domain for it.

        Args:
            setting: what the row asks for.
            reference: the adapter's own, of `tables`.
        """
        strength = self.config.yield_strength if setting.strength is None else setting.strength
        if setting.quantile is None or reference is None:
            return strength, reference
        return strength, self.clusters.reference_at(setting.quantile)

    def _balance(self, routing: Routing, repeated: bool) -> None:
        if not self.config.balance_coefficient:
            return
        # Also when a checkpoint repeats the forward: it must save the same tensors again.
        term = balance_term(routing.logits, routing.weights, self.config.num_experts, self._valid)
        if not repeated:
            self._context.losses.add_balance(self._context.forward_number, self.name, term)

    def tables(self, training: bool) -> tuple[ClusterTables, Tensor | None, Router]:
        """The clusters as `route` wants them, the distances that count as in domain, () or (buckets,), and the router.

        In evaluation they are kept from one decoding step to the next while what they are made from does not change.
        """
        clusters = self.clusters
        name, weights = self.name, self._weights
        weight, bias = weights["slim_router"][name], weights["slim_router_bias"][name]
        down, up = entry(weights["slim_router_down"], name), entry(weights["slim_router_up"], name)
        router = Router(weight, bias, down, up, clusters.token_mean, clusters.token_var)
        center = clusters.center
        if training or torch.compiler.is_compiling() or center.is_inference():
            return *clusters.tables(), router
        # With gradients the router is folded again each time, so that it gets its own.
        folds = router.mean is not None and router.down is None and not torch.is_grad_enabled()
        sources = (center, clusters.var, clusters.reference, *router)
        tensor_versions = (None if t is None else 0 if t.is_inference() else t._version for t in sources)
        versions = (folds, self.config.yield_quantile, *tensor_versions)
        kept = self._tables
        same = kept is not None and all(a is b for a, b in zip(kept.sources, sources, strict=True))
        if kept is None or not same or kept.versions != versions:
            # Usable for a later forward with gradients too, whatever mode this one runs in.
            with torch.inference_mode(False), torch.no_grad():
                tables = *clusters.tables(), Router(*router.folded()) if folds else router
            kept = self._tables = KeptTables(sources, versions, *tables)
        return kept.tables, kept.reference, kept.router

    def forget(self) -> None:
        """Drop cached values after other weights and clusters were loaded."""
        self.clusters.forget()
        self._tables = self._valid = None
