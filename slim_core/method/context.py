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

from .contexts import Sequences
from .given import given_cache, returned_cache, sequences_of
from .sequence_state import put_state


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


def _stacks(model: nn.Module) -> list[nn.Module]:
    """The encoder and the decoder of a model, or its one decoder: the inner modules that people call by themselves."""
    found = []
    for name in ("get_encoder", "get_decoder"):
        stack = getattr(model, name, lambda: None)()
        if isinstance(stack, nn.Module) and stack is not model:
            found.append(stack)
    return found


def _is_encoder_decoder(model: nn.Module) -> bool:
    """Whether the model's arguments are those of two stacks. Stacks have the same config, but none inside."""
    config = getattr(model, "config", None)
    return bool(getattr(config, "is_encoder_decoder", False)) and bool(_stacks(model))


def _batch_of(given: dict[str, Any]) -> int:
    """Rows of a forward's batch; 0 if unknown."""
    names = ("input_ids", "inputs_embeds", "decoder_input_ids")
    return next((len(given[name]) for name in names if isinstance(given.get(name), Tensor)), 0)


class ForwardContext:
    """Shared by the SLIM layers of one model.

    Attributes:
        sequences: what the running forward reads; None outside of one, or if its arguments do not say.
        contextual: adapters whose distance is that of the context.
        forward_number: number of the running training forward; None outside of one.
        adapter_names: the adapter of each row, or None for the active adapters on every row.
        strengths: the yield strength of each row, None for its adapter's own; None if no row has one of its own.
        trace: the routing trace that is being recorded, or None.
        token_rows: what each layer does with rows of one token while `adapter_names` are set; None where it cannot.
        token_routers: the routers for that, by the layer that owns them and the adapter.
        process_group: the data-parallel group over which cluster statistics are added up; None is the default group.
        expects_losses: whether an adapter with a loss of its own learns in the running forward.
        balance: load-balance terms of the last forward that had any, by adapter.
    """

    def __init__(self) -> None:
        self.sequences: Sequences | None = None
        self.contextual: set[str] = set()
        self.forward_number: int | None = None
        self.adapter_names: list[str] | None = None
        self.strengths: list[float | None] | None = None
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
        self._argument_names: dict[nn.Module, list[str]] = {}
        self._rows_alone: Sequences | None = None
        # The modules whose forward is running and has set `sequences`, and what was set before each.
        self._reading: list[tuple[nn.Module, Sequences | None, Any]] = []

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles are between forwards: what belongs to a running or past forward stays behind."""
        running = ("sequences", "forward_number", "adapter_names", "strengths", "trace", "process_group")
        empty = {"balance": {}, "token_rows": {}, "token_routers": {}, "_rows": {}}
        return self.__dict__ | dict.fromkeys(running) | empty | {"_learned": [], "_reading": []}

    # -- life on a model -----------------------------------------------------------------------------------------

    def attach(self, model: nn.Module) -> None:
        """Hook the forward of `model`, and of the stacks of an encoder-decoder, which read tokens of their own."""
        self._handles = []
        for place in dict.fromkeys([model, *_stacks(model)]):
            self._argument_names[place] = list(inspect.signature(place.forward).parameters)
            self._handles += [
                place.register_forward_pre_hook(self._before_forward, with_kwargs=True),
                # Also after an error, so that nothing of a broken forward reaches the next.
                place.register_forward_hook(self._after_forward, always_call=True),
            ]

    def detach(self) -> None:
        """Remove the hooks; the model is as if it had never been adapted."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._argument_names = [], {}

    def forget(self, adapter_name: str) -> None:
        """An adapter was deleted."""
        self.balance.pop(adapter_name, None)
        self.contextual.discard(adapter_name)
        self._learned = [entry for entry in self._learned if entry[1] != adapter_name]

    def _before_forward(self, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        # Where nobody asks, nothing is written in evaluation: a compiled forward would be compiled again.
        if not model.training and self.trace is None and not self.contextual:
            return
        nested = bool(self._reading)
        if nested and not _is_encoder_decoder(self._reading[0][0]):
            return  # the decoder inside of a model that has read the arguments already
        given = dict(zip(self._argument_names[model], args, strict=False)) | kwargs
        found = None
        if not _is_encoder_decoder(model) or nested:
            found = sequences_of(model, given, self.adapter_names, bool(self.contextual))
        if not nested and self._rows_alone is not None:
            self._rows_alone.forget_excess()
        self._reading.append((model, self.sequences, given_cache(given)))
        self.sequences = found
        if nested:
            return
        if model.training:
            self._begin_training_forward()
        if self.trace is not None:
            self.trace.begin_forward(_batch_of(given), None if found is None else found.flat_valid)

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

    def _after_forward(self, model: nn.Module, args: tuple, output: Any) -> None:
        if not self._reading or self._reading[-1][0] is not model:
            return
        _, outer, cache = self._reading.pop()
        state = None if self.sequences is None else self.sequences.state_after()
        if state is not None and output is not None:
            cache = returned_cache(output) if cache is None else cache
            if cache is not None:
                put_state(cache, state)
        self.sequences = outer
        if not self._reading and self.forward_number is not None:
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
        sums = [tensor for layer, name in self._learned for tensor in layer.pending[name].tensors]
        for device in dict.fromkeys(t.device for t in sums):
            local = [t for t in sums if t.device == device]
            flat = torch.cat([t.reshape(-1) for t in local])
            dist.all_reduce(flat, group=self.process_group)
            for tensor, total in zip(local, flat.split([t.numel() for t in local]), strict=True):
                tensor.copy_(total.view_as(tensor))

    def add_up(self, sums: Tensor) -> None:
        """Add a tensor up over the data-parallel ranks, in place."""
        if self.distributed:
            dist.all_reduce(sums, group=self.process_group)

    def share_first_clusters(self, tensors: list[Tensor]) -> None:
        """Give every data-parallel rank the first clusters of the group's first rank."""
        if self.distributed:
            for tensor in tensors:
                dist.broadcast(tensor, group=self.process_group, group_src=0)

    # -- rows ----------------------------------------------------------------------------------------------------

    def set_rows(self, adapter_names: list[str] | None, strengths: list[float | None] | None = None) -> None:
        self.adapter_names, self.strengths = adapter_names, strengths
        self._rows, self.token_rows, self.token_routers = {}, {}, {}

    def each_row_alone(self, batch: int, tokens: int, device: torch.device) -> Sequences:
        """Where no model said what it was given: each row is a sequence of its own, and nobody goes on from it."""
        found = self._rows_alone
        if found is None or (found.batch, found.tokens, found.device) != (batch, tokens, device):
            # In training a layer may keep it, and it holds no activations.
            found = self._rows_alone = Sequences(batch, tokens, device)
        elif not self._reading:
            # Outside of a forward nobody says which layers belong together.
            found.forget_excess()
        return found

    @property
    def one_token_each(self) -> bool:
        """Whether the running forward reads one token of each of `adapter_names`."""
        found = self.sequences
        return found is not None and found.tokens == 1 and found.batch == len(self.adapter_names)

    def strengths_of(self, adapter_name: str, own: float, device: torch.device) -> Tensor:
        """(rows,) yield strength of each row of an adapter, whose own is `own`."""
        wanted = zip(self.adapter_names, self.strengths, strict=True)
        return torch.tensor([own if s is None else s for name, s in wanted if name == adapter_name], device=device)

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
