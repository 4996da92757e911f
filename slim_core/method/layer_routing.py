# SPDX-License-Identifier: Apache-2.0
"""How a layer routes: what it reads, whose contexts, which experts. The state that it needs is made in `layer.py`."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, Optional

import torch
from torch import Tensor, nn

from . import clusters
from .config import SlimConfig
from .context import in_backward
from .contexts import Contexts, Sequences
from .excess import Below
from .learning import ClusterLearner, entry
from .losses import balance_term
from .one_token import TokenRouter
from .routing import ClusterTables, Router, Routing, Yielding, cluster_tables, route


class KeptTables(NamedTuple):
    """Cluster tables, reference distances and router, and the state of the tensors that they were made from."""

    sources: tuple[Tensor | None, ...]
    versions: tuple[int | float | None, ...]
    tables: ClusterTables
    reference: Tensor | None
    router: Router


class KeptBelow(NamedTuple):
    """What a layer's router was told in a training forward, for gradient checkpointing to repeat.

    Attributes:
        forward: number of the forward; None outside of one.
        calls: one for each time that the layer ran.
    """

    forward: int | None
    calls: list[Below]


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
    # Entering the context costs as much as a few of the operations inside, so it is entered only where it matters.
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


class RoutedLayer(ClusterLearner):
    """The part of a SLIM layer that routes. Containers are keyed by adapter name."""

    in_features: int
    training: bool
    router_names: tuple[str, ...]
    slim_A: nn.ParameterDict
    _sequences: dict[str, Sequences | None]
    _tables: dict[str, KeptTables]
    _found_below: dict[str, KeptBelow]
    _router_owner: dict[str, list[RoutedLayer]]
    _router_readers: dict[str, int]
    _shared_routing: dict[str, Optional[SharedRouting]]

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
            held = SharedRouting(whole_x, version, owner._compute_routing(adapter_name, x, whole_x), 0)
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
            tables, reference, router = self._tables_of(adapter_name)
            below = self._below(adapter_name, config, sequences, repeated)
            routing = route(
                x,
                tables,
                router,
                num_experts=config.num_experts,
                top_k=config.top_k,
                statistic=config.distance,
                yielding=self._yielding(adapter_name, config, reference, contexts, len(x))._replace(below=below),
                context=None if contexts is None else contexts.mean,
            )
            if below is not None and not repeated:
                rows = self._rows_of_batch(adapter_name, sequences.batch, x.device)
                sequences.excess_of(adapter_name).add(rows, routing.excess)
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
            tokens = whole_x[0].numel() // self.in_features
            found = self.context.each_row_alone(len(whole_x), tokens, whole_x.device)
        if learning:
            # Kept for the forward that gradient checkpointing repeats when the model's is over.
            self._sequences[adapter_name] = found
            self._valid[adapter_name] = None if found is None else found.learned_from(self._opening(adapter_name))
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
        return sequences.contexts(self._key(adapter_name), self._opening(adapter_name), x.detach(), rows, whole_x)

    def _below(
        self, adapter_name: str, config: SlimConfig, sequences: Sequences | None, repeated: bool
    ) -> Below | None:
        """What the adapter's routers before this one have found; None where each follows its own excess."""
        if not config.carries_up:
            return None
        kept = self._found_below.get(adapter_name)
        if repeated:
            # Where a layer runs twice in a forward, the backward pass comes to its last run first.
            return kept.calls.pop() if len(kept.calls) > 1 else kept.calls[0]
        rows = self._rows_of_batch(adapter_name, sequences.batch, sequences.device)
        below = sequences.excess_of(adapter_name).below(rows, self.slim_center[adapter_name].device)
        if self._is_learning(adapter_name):
            running = self.context.forward_number
            if kept is None or running is None or kept.forward != running:
                kept = self._found_below[adapter_name] = KeptBelow(running, [])
            kept.calls.append(below)
        return below

    def _opening(self, adapter_name: str) -> tuple[int, ...]:
        """The ids that open a turn; empty where none are looked for."""
        config = self.slim_config[adapter_name]
        return tuple(config.turn_opening or ()) if config.distance_scope == "context" else ()

    def _key(self, adapter_name: str) -> str:
        return f"{self.module_name} of {adapter_name}"

    def _rows_of_batch(self, adapter_name: str, batch: int, device: torch.device) -> slice | Tensor | None:
        if self.context.rows is None:
            return None
        return self.context.rows.by_adapter(batch, device)[adapter_name]

    def _yielding(
        self, adapter_name: str, config: SlimConfig, reference: Tensor | None, contexts: Contexts | None, tokens: int
    ) -> Yielding:
        closed = None
        if reference is not None and reference.dim():
            reference = reference[0] if contexts is None else reference[contexts.bucket]
        if contexts is not None and config.context_warmup:
            closed = contexts.count <= config.context_warmup
        strength: float | Tensor = config.yield_strength
        if self.context.rows is not None:
            strength = self.context.rows.strengths_of(adapter_name, strength, self.slim_center[adapter_name].device)
        if isinstance(strength, Tensor):
            strength = strength.repeat_interleave(tokens // len(strength))
        return Yielding(config.yield_mode, strength, reference, closed)

    def token_router(self, adapter_name: str) -> TokenRouter:
        """The adapter's router for rows of one token; one while `adapter_names` are set, for all that share it."""
        routers = self.context.rows.kept
        key = (self, adapter_name)
        if key not in routers:
            self._slide_earlier(adapter_name, learning=False)
            tables, reference, router = self._tables_of(adapter_name)
            routers[key] = TokenRouter(
                self.slim_config[adapter_name],
                tables,
                router,
                reference,
                self._router_readers.get(adapter_name, 1),
                self._key(adapter_name),
                adapter_name,
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
            self.context.losses.add_balance(self.context.forward_number, adapter_name, term)

    def _tables_of(self, adapter_name: str) -> tuple[ClusterTables, Tensor | None, Router]:
        """The clusters as `route` wants them, the distances that count as in domain, () or (buckets,), and the router.

        They are kept from one decoding step to the next while what they are made from does not change.
        """
        center, var = self.slim_center[adapter_name], self.slim_var[adapter_name]
        reference = entry(self.slim_reference, adapter_name)
        router = self._router(adapter_name)
        quantile = self.slim_config[adapter_name].yield_quantile

        def row() -> Tensor | None:
            several = reference is not None and reference.dim() == 2
            return clusters.reference_row(reference, quantile) if several else reference

        if self.training or torch.compiler.is_compiling() or center.is_inference():
            return cluster_tables(center, var), row(), router
        # With gradients the router is folded again each time, so that it gets its own.
        folds = router.mean is not None and router.down is None and not torch.is_grad_enabled()
        sources = (center, var, reference, *router)
        known = (None if t is None else 0 if t.is_inference() else t._version for t in sources)
        versions = (folds, quantile, *known)
        kept = self._tables.get(adapter_name)
        same = kept is not None and all(a is b for a, b in zip(kept.sources, sources, strict=True))
        if not same or kept.versions != versions:
            # Also fit for a later forward with gradients, whatever mode this one runs in.
            with torch.inference_mode(False), torch.no_grad():
                made = cluster_tables(center, var), row(), Router(*router.folded()) if folds else router
            kept = self._tables[adapter_name] = KeptTables(sources, versions, *made)
        return kept.tables, kept.reference, kept.router
