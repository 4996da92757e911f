# SPDX-License-Identifier: Apache-2.0
"""The forward of SLIM around one Linear."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import merging
from .adapter_router import AdapterRouter
from .config import SlimConfig
from .context import ForwardContext, in_backward
from .layer import SlimLayer


class RowsKernel(Protocol):
    """A faster way to compute what a Linear adds to the rows of a batch."""

    def __call__(self, layer: Linear, x: Tensor, result: Tensor) -> Tensor | None:
        """The Linear's output, or None where the kernel is not made for this; then `result` is unchanged.

        Args:
            layer: the Linear. Its context has the rows, with a place for what the kernel prepares for them.
            x: (B, ..., C_in) the whole input.
            result: (B, ..., C_out) of the base layer, which may be written to.
        """


def _warn_of_evaluation_mode(grad: Tensor) -> None:
    warnings.warn(
        "A SLIM adapter is being trained while the model is in evaluation mode: its clusters do not move. Call "
        "`model.train()` before the training loop.",
        stacklevel=2,
    )


class Linear(nn.Module, SlimLayer):
    """SLIM around one Linear: y = Wx + b + sum_i (w_i / Z) s B'_i A'_i x (Eq. 2 with dynamic merging).

    The base layer may be a `torch.nn.Linear`, transformers' `Conv1D`, or a 4- or 8-bit Linear of bitsandbytes.

    Attributes:
        rows_kernel: asked first where a batch has rows of several adapters. None in this package, where the rows of
            each adapter are computed as a batch of their own; `slim_core.inference` installs one for single tokens.
    """

    rows_kernel: ClassVar[RowsKernel | None] = None

    def __init__(
        self,
        base_layer: nn.Module,
        adapter_name: str,
        config: SlimConfig,
        r: int,
        alpha: float,
        context: ForwardContext,
        module_name: str,
        shared: AdapterRouter | None = None,
    ) -> None:
        super().__init__()
        SlimLayer.__init__(self, base_layer, context, module_name)
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config, r, alpha, shared)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(..., C_in) to (..., C_out), in the dtype of the base layer's result."""
        result = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters:
            return result
        context = self.context
        if context.rows is None:
            for name in self.active_adapters:
                if name in self.slim_A:
                    result = self._add_experts(name, x, result, x, None)
            return result
        if not context.rows.adapted:
            return result
        if self.quantization_backend is not None:
            result = self.quantization_backend.maybe_clone_base_result(result)
        if self.rows_kernel is not None:
            added = self.rows_kernel(self, x, result)
            if added is not None:
                return added
        for name, rows in context.rows.by_adapter(len(x), x.device).items():
            if name in self.slim_A:
                result[rows] = self._add_experts(name, x[rows], result[rows], x, rows)
        return result

    def _add_experts(
        self, name: str, x: Tensor, result: Tensor, whole_x: Tensor, rows: slice | Tensor | None
    ) -> Tensor:
        """`result` plus the routed experts of adapter `name`; `rows` says which rows of `whole_x` these are."""
        config = self.slim_config[name]
        if self._is_learning(name):
            self.check_whole(name)
            if (config.l1_coefficient or config.balance_coefficient) and not in_backward():
                self.context.losses.expect()
        tokens = x.reshape(-1, self.in_features)
        weights = None
        if config.routed:
            learning = self._is_learning(name)
            routing = self.routers[name].routing(tokens, whole_x, training=self.training, learning=learning)
            weights = routing.weights[:, : config.num_experts]
            trained = weights.requires_grad and self.slim_A[name].requires_grad
            if trained and not self.training and not torch.compiler.is_compiling():
                weights.register_hook(_warn_of_evaluation_mode)
            if self.context.trace is not None:
                self.context.trace.add(self.module_name, name, len(whole_x), rows, routing)
        elif self.context.trace is not None:
            self.context.trace.add_unrouted(self.module_name, name, len(whole_x), rows, tokens)
        if weights is not None and self._past_all_experts(weights):
            return result
        tokens = self._cast_input_dtype(tokens, self.slim_A[name].dtype)
        if config.dropout and self._is_learning(name):
            tokens = F.dropout(tokens, config.dropout)
        flat = result.reshape(-1, self.out_features)
        if config.merge == "dare" and config.mask_rate > 0:
            flat = self._add_dare(name, config, tokens, weights, flat)
        else:
            flat = self._add_stacked(name, config, tokens, weights, flat)
        return flat.view_as(result)

    def _past_all_experts(self, weights: Tensor) -> bool:
        """Whether no token is routed to a LoRA expert. Checked only on CPUs, since elsewhere it needs a
        synchronisation.
        """
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            # A checkpoint's two forwards must draw the same masks, and only the first runs without gradients.
            return False
        return weights.device.type == "cpu" and not weights.any()

    def _add_stacked(self, name: str, config: SlimConfig, x: Tensor, weights: Tensor | None, result: Tensor) -> Tensor:
        """All experts in two matrix products, each r-slice of the hidden scaled by its token's weight."""
        a, b = self.slim_A[name], self.slim_B[name]
        scale = 1.0 if name in self.folded else self.scaling[name]
        sliced = name in self.slim_column_index
        columns, rows = (None, None) if sliced else self._fast_masks(name, config, x)
        if sliced:
            x = x.index_select(-1, self.slim_column_index[name])
        elif columns is not None:
            x = x * columns
        hidden = F.linear(x, a)
        if weights is not None:
            hidden = hidden.unflatten(-1, (config.num_experts, -1))
            if hidden.dtype == torch.float16:
                # A distant token may overflow here, and its weight of 0 would turn that into a NaN.
                hidden = hidden.masked_fill((weights == 0).unsqueeze(-1), 0)
            hidden = (hidden * weights.unsqueeze(-1).to(hidden.dtype)).flatten(-2)
        if sliced:
            delta = F.linear(hidden, b).mul_(scale)
            return result.index_add(-1, self.slim_row_index[name], delta.to(result.dtype))
        if rows is None and result.dtype == hidden.dtype == b.dtype:
            return torch.addmm(result, hidden, b.t(), alpha=scale)
        # In place is safe: nothing else holds this product.
        delta = F.linear(hidden, b)
        delta.mul_(scale if rows is None else rows.to(delta.dtype) * scale)
        return delta.add_(result) if delta.dtype == result.dtype else (result + delta).to(result.dtype)

    def _fast_masks(self, name: str, config: SlimConfig, x: Tensor) -> tuple[Tensor, Tensor] | tuple[None, None]:
        if config.merge != "fast" or config.mask_rate == 0 or name in self.folded:
            return None, None
        if self._is_learning(name):
            return merging.fast_masks(self.in_features, self.out_features, config.mask_rate, device=x.device)
        return self.slim_columns[name], self.slim_rows[name]

    def _add_dare(self, name: str, config: SlimConfig, x: Tensor, weights: Tensor | None, result: Tensor) -> Tensor:
        """The reference implementation: each expert's product is formed and masked entry by entry. Deliberately slow
        and memory-hungry.
        """
        generator = None
        if not self._is_learning(name):
            # Drawn on the CPU, so that every device drops the same entries.
            generator = torch.Generator().manual_seed(merging.module_seed(config.mask_seed, self.module_name))
        experts = zip(
            self.slim_A[name].chunk(config.num_experts),
            self.slim_B[name].chunk(config.num_experts, dim=1),
            strict=True,
        )
        total: Tensor | int = 0
        for i, (a, b) in enumerate(experts):
            mask = merging.dare_mask(
                self.out_features,
                self.in_features,
                config.mask_rate,
                device=x.device if generator is None else "cpu",
                generator=generator,
            ).to(x.device)
            delta = F.linear(x, b @ a * mask)
            total = total + (delta if weights is None else delta * weights[:, i : i + 1].to(delta.dtype))
        return (result + total * self.scaling[name]).to(result.dtype)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        # Called before the statistics' own containers save: what the last forward saw must be in the file.
        for name in self.slim_center:
            self.routers[name].clusters.fold()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        for name in self.slim_center:
            if f"{prefix}slim_center.{name}" in state_dict:
                self.routers[name].forget()

    def __repr__(self) -> str:
        return "slim." + super().__repr__()
