# SPDX-License-Identifier: Apache-2.0
"""Settings for every forward within a `with` block: the adapter of each row, and the recorder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from ..method import (
    BatchRows,
    ForwardContext,
    GateSetting,
    SlimConfig,
    SlimLayer,
    check_names,
    check_quantile,
    context_of,
    stored_quantiles,
)
from .trace import RoutingTrace


@contextmanager
def adapter_rows(
    model: nn.Module, adapter_names: list[str], gates: Sequence[GateSetting] | None = None
) -> Iterator[None]:
    """Within this context, every forward of the adapted model has these rows; setting them costs time only once.

    PEFT's own way, `model(**batch, adapter_names=...)`, looks through all modules in each forward.

    Args:
        model: the base model that carries the adapters (`PeftModel.get_base_model()`), or any model around it.
        adapter_names: the adapter of each row; `"__base__"` is the base model.
        gates: what each row asks of its adapter's gate; None to leave all as they were trained.

    Raises:
        ValueError: if the model has no adapter, a name is unknown, there is not one gate setting for each row, an
            adapter does not store a quantile that is asked for, or the model is in training mode.
        RuntimeError: if a batch with `adapter_names` is running already.
    """
    scopes = RowScopes(model)
    if not scopes.adapted:
        raise ValueError("The model has no adapter whose rows could be told apart: attach one first.")
    with scopes.answering(scopes.rows(adapter_names, gates)):
        yield


class RowScopes:
    """`adapter_rows` for a loop whose rows change often: the modules are searched once.

    Make a new one after an adapter was attached or detached.

    Args:
        model: as for `adapter_rows`, with or without adapters.

    Attributes:
        adapted: whether the model has adapters whose rows can be told apart.
        traceable: adapters whose routing can be traced.
        openings: by adapter whose distance is that of the context, the ids that open a turn for it.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._context, configs = context_of(model), _slim_of(model)[1]
        self._known = set() if self._context is None else _names_of(model) | {*self._context.guests}
        self._num_experts = _num_experts(self._context, configs)
        self._saved_whole = [module for module in model.modules() if isinstance(module, AuxiliaryTrainingWrapper)]
        self.adapted = self._context is not None
        self.traceable = set(self._num_experts)
        self._quantiles = {name: stored_quantiles(config) for name, config in configs.items() if config.routed}
        contextual = set() if self._context is None else self._context.contextual
        self.openings = {name: tuple(configs[name].turn_opening or ()) for name in contextual & set(configs)}

    def rows(self, adapter_names: list[str], gates: Sequence[GateSetting] | None = None) -> BatchRows:
        """Rows for `answering`; raises as `adapter_rows`."""
        check_names(adapter_names, self._known, self._model.training)
        rows = BatchRows(adapter_names, gates)
        if rows.gates is not None:
            for name, gate in zip(adapter_names, rows.gates, strict=True):
                if name in self._quantiles:
                    check_quantile(gate.quantile, self._quantiles[name])
        return rows

    def trace(self, rows: Sequence[int] | None) -> RoutingTrace:
        """A trace of some rows for `answering`; None records all."""
        return RoutingTrace(rows, self._num_experts)

    @contextmanager
    def answering(self, rows: BatchRows | None, trace: RoutingTrace | None = None) -> Iterator[None]:
        """Within this context, every forward has these rows, and is recorded if there is a trace. Both are reusable.

        Args:
            rows: of `rows`; None for a model without adapters.
            trace: of `trace`.

        Raises:
            RuntimeError: if other rows or another trace are set.
        """
        if self._context is None or rows is None:
            yield
            return
        with ExitStack() as scopes:
            scopes.enter_context(self._context.answering(rows, self._saved_whole))
            if trace is not None:
                scopes.enter_context(self._context.recording(trace))
            yield


@contextmanager
def trace_routing(model: nn.Module, rows: Sequence[int] | None = None) -> Iterator[RoutingTrace]:
    """Record how the SLIM layers of `model` route, for the duration of a `with` block, and how the routers of other
    methods that are attached beside them do.

    Padding is left out where the model is given a (batch, tokens) mask. With a static cache, `generate` hands over a
    four-dimensional one that does not say what is padding; then every token is recorded.

    What the forwards read is recorded, in their order: with beams a row for each, which holds what stood in its place,
    and with assisted generation also the guesses that were taken back. To trace what was returned, read it once more.

    Args:
        model: a model with SLIM adapters, however they were attached.
        rows: the rows of the batch to record; None for all.

    Raises:
        ValueError: if the model has no SLIM layer.
        RuntimeError: if a trace of this model is open already.

    Example:
        >>> with trace_routing(model, rows=[2]) as trace:
        ...     model.generate(**batch, adapter_names=["__base__", "my-lora", "my-slim"])
        >>> trace.row(2).identity          # (Linears, tokens)
    """
    context, configs = _slim_of(model)
    if context is None:
        raise ValueError("The model has no SLIM layer, so there is no routing to trace: attach a SLIM adapter first.")
    trace = RoutingTrace(rows, _num_experts(context, configs))
    with context.recording(trace):
        yield trace


def traceable_adapters(model: nn.Module) -> set[str]:
    """Adapters of a model whose routing can be traced."""
    return set(_num_experts(*_slim_of(model)))


def _names_of(model: nn.Module) -> set[str]:
    """The adapters of all layers that support rows of several adapters."""
    layers = (module for module in model.modules() if isinstance(module, BaseTunerLayer) and "context" in vars(module))
    return {name for layer in layers for name in layer._get_available_adapters()}


def _num_experts(context: ForwardContext | None, configs: dict[str, SlimConfig]) -> dict[str, int]:
    """LoRA experts of each adapter whose routing can be traced."""
    numbers = {name: config.num_experts for name, config in configs.items()}
    # Without its hooks on the model, a context does not know what of a batch is padding.
    if context is not None and context.attached:
        numbers |= {name: number for name, number in context.guests.items() if number}
    return numbers


def _slim_of(model: nn.Module) -> tuple[ForwardContext | None, dict[str, SlimConfig]]:
    """The context of a model's SLIM layers, None if it has none, and the configs of its adapters."""
    context: ForwardContext | None = None
    configs: dict[str, SlimConfig] = {}
    for module in model.modules():
        if isinstance(module, SlimLayer):
            context = module.context
            configs |= module.slim_config
    return context, configs
