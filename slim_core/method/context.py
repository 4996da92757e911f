# SPDX-License-Identifier: Apache-2.0
"""What one forward of the whole model tells its SLIM layers: the padding mask, the rows' adapters, the trace.

One `ForwardContext` is shared by all SLIM layers of a model. Its hooks sit on the model that was adapted, so they run
however the forward was started: plain, `generate`, Trainer, or a model that only had adapters injected.
"""

from __future__ import annotations

import inspect
import warnings
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


if TYPE_CHECKING:
    from .layer import SlimLayer
    from .one_token import TokenRouter, TokenRows
    from .trace import RoutingTrace


BASE_ROW = "__base__"
# Training forwards without a call for the configured extra losses, after which a warning says so.
FORGOTTEN_AFTER = 10


def in_backward() -> bool:
    """Whether this forward is the second run of a gradient checkpoint, started by the backward pass."""
    return torch._C._current_graph_task_id() != -1


class ForwardContext:
    """Shared by the SLIM layers of one model.

    Attributes:
        mask: (tokens of the batch,) bool of the running forward, False for padding; None if every token counts.
        batch_size: rows of the running forward's batch; 0 if unknown.
        forward_number: number of the running training forward; None outside of one.
        adapter_names: the adapter of each row, or None for the active adapters on every row.
        trace: the routing trace that is being recorded, or None.
        token_rows: what each layer does with rows of one token while `adapter_names` are set; None where it cannot.
        token_routers: the routers for that, by the layer that owns them and the adapter.
        process_group: the data-parallel group over which cluster statistics are added up; None is the default group.
        expects_losses: whether an adapter with a loss of its own learns in the running forward.
        balance: load-balance terms of the last forward that had any, by adapter.
    """

    def __init__(self) -> None:
        self.mask: Tensor | None = None
        self.batch_size = 0
        self.forward_number: int | None = None
        self.adapter_names: list[str] | None = None
        self.trace: RoutingTrace | None = None
        self.token_rows: dict[SlimLayer, TokenRows | None] = {}
        self.token_routers: dict[tuple[SlimLayer, str], TokenRouter] = {}
        self.process_group: dist.ProcessGroup | None = None
        self.expects_losses = False
        self.balance: dict[str, list[Tensor]] = {}
        self._balance_of: int | None = None
        self._forwards = 0
        self._forwards_since_losses = 0
        self._learned: list[tuple[SlimLayer, str]] = []
        self._rows: dict[tuple[int, torch.device], list[tuple[str, slice | Tensor]]] = {}
        self._handles: list[Any] = []
        self._argument_names: list[str] = []

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles are between forwards: what belongs to a running or past forward stays behind."""
        between = {"mask": None, "forward_number": None, "adapter_names": None, "trace": None, "process_group": None}
        empty = {"balance": {}, "token_rows": {}, "token_routers": {}, "_rows": {}}
        return self.__dict__ | between | empty | {"_learned": []}

    # -- life on a model -----------------------------------------------------------------------------------------

    def attach(self, model: nn.Module) -> None:
        """Hook the forward of `model`."""
        self._argument_names = list(inspect.signature(model.forward).parameters)
        self._handles = [
            model.register_forward_pre_hook(self._before_forward, with_kwargs=True),
            # Also after an error, so that nothing of a broken forward reaches the next.
            model.register_forward_hook(self._after_forward, always_call=True),
        ]

    def detach(self) -> None:
        """Remove the hooks; the model is as if it had never been adapted."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def forget(self, adapter_name: str) -> None:
        """An adapter was deleted."""
        self.balance.pop(adapter_name, None)
        self._learned = [entry for entry in self._learned if entry[1] != adapter_name]

    def _before_forward(self, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        # In evaluation nothing is written here: a compiled forward would be compiled again for each change.
        if not model.training and self.trace is None:
            return
        self._read_mask(model, dict(zip(self._argument_names, args, strict=False)) | kwargs)
        if model.training:
            self._begin_training_forward()
        if self.trace is not None:
            self.trace.begin_forward(self.batch_size, self.mask)

    def _begin_training_forward(self) -> None:
        self._forwards += 1
        self.forward_number = self._forwards
        self._learned = []
        self.expects_losses = False

    def _end_training_forward(self) -> None:
        self.forward_number = None
        if self._learned and self.distributed:
            self._add_up_over_ranks()
        self._forwards_since_losses += self.expects_losses
        if self.expects_losses and self._forwards_since_losses == FORGOTTEN_AFTER:
            warnings.warn(
                "The SLIM config sets `l1_coefficient` or `balance_coefficient`, but nothing has asked for these "
                "losses: add `sum(slim_core.extra_losses(model).values())` to the training loss.",
                stacklevel=2,
            )

    def losses_asked_for(self) -> None:
        """The training loop has asked for the extra losses."""
        self._forwards_since_losses = 0

    def _read_mask(self, model: nn.Module, given: dict[str, Any]) -> None:
        tokens = next((given[n] for n in ("input_ids", "inputs_embeds") if given.get(n) is not None), None)
        mask = given.get("attention_mask")
        self.mask = None
        self.batch_size = 0 if tokens is None else tokens.shape[0]
        # Only a (batch, tokens) mask says which tokens are padding. With a KV cache it also covers the past.
        if tokens is None or not isinstance(mask, Tensor) or mask.dim() != 2 or mask.shape[0] != tokens.shape[0]:
            return
        if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
            warnings.warn(
                "SLIM cannot tell the padding of an encoder from that of a decoder: padding counts like any token.",
                stacklevel=2,
            )
            return
        self.mask = mask[:, -tokens.shape[1] :].reshape(-1) != 0

    def _after_forward(self, model: nn.Module, args: tuple, output: Any) -> None:
        if not model.training and self.trace is None:
            return
        self.mask = None
        if self.forward_number is not None:
            self._end_training_forward()

    # -- what the layers learn -----------------------------------------------------------------------------------

    def note_learned(self, layer: SlimLayer, adapter_name: str) -> None:
        """`layer` has new sums for `adapter_name`, to be added up over the ranks when the forward ends."""
        if self.forward_number is not None:
            self._learned.append((layer, adapter_name))

    def add_balance(self, adapter_name: str, term: Tensor) -> None:
        """A load-balance term of one router in the running forward; those of an earlier forward go."""
        if self._balance_of != self.forward_number:
            self.balance, self._balance_of = {}, self.forward_number
        self.balance.setdefault(adapter_name, []).append(term)

    @property
    def distributed(self) -> bool:
        """Whether there are other data-parallel ranks."""
        return dist.is_available() and dist.is_initialized() and dist.get_world_size(self.process_group) > 1

    def _add_up_over_ranks(self) -> None:
        sums = [tensor for layer, name in self._learned for tensor in layer.pending[name].sums]
        for device in dict.fromkeys(t.device for t in sums):
            local = [t for t in sums if t.device == device]
            flat = torch.cat([t.reshape(-1) for t in local])
            dist.all_reduce(flat, group=self.process_group)
            for tensor, total in zip(local, flat.split([t.numel() for t in local]), strict=True):
                tensor.copy_(total.view_as(tensor))

    def share_first_clusters(self, tensors: list[Tensor]) -> None:
        """Give every data-parallel rank the first clusters of the group's first rank."""
        if self.distributed:
            for tensor in tensors:
                dist.broadcast(tensor, group=self.process_group, group_src=0)

    # -- rows ----------------------------------------------------------------------------------------------------

    def set_rows(self, adapter_names: list[str] | None) -> None:
        self.adapter_names = adapter_names
        self._rows, self.token_rows, self.token_routers = {}, {}, {}

    def rows(self, length: int, device: torch.device) -> list[tuple[str, slice | Tensor]]:
        """Which rows of a layer's input belong to which adapter.

        Args:
            length: size of the input's first dimension: the batch, or a multiple of it where generation repeats rows
                (beams, several returned sequences) or a model flattens batch and tokens.
            device: where index tensors go.

        Returns:
            One (adapter, rows) per adapter but the base's; neighbouring rows are a slice, so that nothing is copied.
        """
        key = (length, device)
        if key not in self._rows:
            names = self.adapter_names
            repeat, rest = divmod(length, len(names))
            if rest:
                raise ValueError(
                    f"`adapter_names` has {len(names)} names, but a layer got {length} rows, which is no multiple of "
                    "it: this layer cannot tell which adapter its rows belong to."
                )
            rows = []
            for name in dict.fromkeys(n for n in names if n != BASE_ROW):
                index = [i * repeat + j for i, n in enumerate(names) if n == name for j in range(repeat)]
                if index[-1] - index[0] + 1 == len(index):
                    rows.append((name, slice(index[0], index[-1] + 1)))
                else:
                    rows.append((name, torch.tensor(index, device=device)))
            self._rows[key] = rows
        return self._rows[key]
