# SPDX-License-Identifier: Apache-2.0
"""What the SLIM layers need to know about a forward of the whole model: its tokens, the adapter of each row, the
recorder.

One `ForwardContext` is shared by all SLIM layers of a model. Its hooks sit on the model that was adapted, so they run
however the forward was started: plain, `generate`, Trainer, or a model that only had adapters injected.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from .batch_rows import BASE_ROW, BatchRows
from .contexts import Sequences
from .data_parallel import add_up
from .given import given_cache, returned_cache, sequences_of
from .losses import LossTerms
from .recorder import Recorder
from .sequence_state import put_state


def in_backward() -> bool:
    """Whether this forward is the second run of a gradient checkpoint, started by the backward pass."""
    return torch._C._current_graph_task_id() != -1


def _stacks(model: nn.Module) -> list[nn.Module]:
    """The encoder and decoder of a model, or its only decoder: the inner modules that may be called directly."""
    stacks = []
    for name in ("get_encoder", "get_decoder"):
        stack = getattr(model, name, lambda: None)()
        if isinstance(stack, nn.Module) and stack is not model:
            stacks.append(stack)
    return stacks


def _is_encoder_decoder(model: nn.Module) -> bool:
    """Whether the model takes the arguments of two stacks. A stack has the same config but contains no stack."""
    config = getattr(model, "config", None)
    return bool(getattr(config, "is_encoder_decoder", False)) and bool(_stacks(model))


def _batch_of(arguments: dict[str, Any]) -> int:
    """Rows of a forward's batch; 0 if unknown."""
    names = ("input_ids", "inputs_embeds", "decoder_input_ids")
    return next((len(arguments[name]) for name in names if isinstance(arguments.get(name), Tensor)), 0)


class _Reading(NamedTuple):
    """A module whose forward is running and has set the context's sequences.

    Attributes:
        model: the module.
        arguments: by name.
        outer: the sequences that were set before.
    """

    model: nn.Module
    arguments: dict[str, Any]
    outer: Sequences | None


# Where a base keeps its context while no layer has one.
KEPT = "_rows_context"


def context_of(model: nn.Module) -> ForwardContext | None:
    """The context of the adapters on a model; None if it has none.

    Args:
        model: the base model, or any model around it.
    """
    for module in model.modules():
        for name in ("context", KEPT):
            context = module.__dict__.get(name)
            if isinstance(context, ForwardContext):
                return context
    return None


def keep_context(base: nn.Module) -> ForwardContext:
    """The context of a base model, created if needed: rows that only hooks compute need one too."""
    context = context_of(base) or ForwardContext()
    base.__dict__[KEPT] = context
    return context


def drop_context(base: nn.Module) -> None:
    """Stop keeping a context on the base itself; its layers keep theirs."""
    base.__dict__.pop(KEPT, None)


class ForwardContext:
    """Shared by the adapted layers of one model.

    Attributes:
        sequences: what the running forward reads; None outside of one, or if its arguments do not say.
        contextual: adapters whose distance is that of the context.
        deletions: how often such an adapter of each name was deleted.
        forward_number: number of the running training forward; None outside of one.
        rows: the adapter of each row of the batch; None if the active adapters apply to every row.
        trace: the recorder that receives every routing, or None.
        losses: what the layers add to the loss.
        guests: adapters whose rows are computed by hooks on the base's own modules, and how many LoRA experts the
            router of each chooses among; 0 without a router.
        process_group: the data-parallel group over which cluster statistics are added up; None is the default group.
    """

    def __init__(self) -> None:
        self.sequences: Sequences | None = None
        self.contextual: set[str] = set()
        self.deletions: Counter[str] = Counter()
        self.forward_number: int | None = None
        self.rows: BatchRows | None = None
        self.trace: Recorder | None = None
        self.losses = LossTerms()
        self.guests: dict[str, int] = {}
        self.process_group: dist.ProcessGroup | None = None
        self._forwards = 0
        # Sums of the running training forward; they are added up over the ranks when it ends.
        self._learned: list[Tensor] = []
        self._handles: list[Any] = []
        self._argument_names: dict[nn.Module, list[str]] = {}
        self._rows_alone: Sequences | None = None
        # Nested forwards, the innermost last.
        self._reading: list[_Reading] = []
        # Adds the layers' losses to that of the model; called with the model, its arguments by name and its output.
        self._add_losses: Callable[[nn.Module, dict[str, Any], Any], Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles are between forwards: what belongs to a running or past forward stays behind."""
        running = ("sequences", "forward_number", "rows", "trace", "process_group")
        return self.__dict__ | dict.fromkeys(running) | {"losses": LossTerms(), "_learned": [], "_reading": []}

    # -- life on a model -----------------------------------------------------------------------------------------

    def attach(self, model: nn.Module, add_losses: Callable[[nn.Module, dict[str, Any], Any], Any]) -> None:
        """Hook the forward of `model`, and of the stacks of an encoder-decoder, which read tokens of their own.

        Args:
            model: the model that was adapted.
            add_losses: makes the output of a training forward that expects losses; see `extra_losses.py`.
        """
        self._handles, self._add_losses = [], add_losses
        for place in dict.fromkeys([model, *_stacks(model)]):
            self._argument_names[place] = list(inspect.signature(place.forward).parameters)
            self._handles += [
                place.register_forward_pre_hook(self._before_forward, with_kwargs=True),
                # Also after an error, so that nothing from a failed forward reaches the next.
                place.register_forward_hook(self._after_forward, always_call=True),
            ]

    @property
    def attached(self) -> bool:
        """Whether the hooks are on a model."""
        return bool(self._handles)

    def detach(self) -> None:
        """Remove the hooks; the model is as before it was adapted."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._argument_names = [], {}

    def forget(self, adapter_name: str) -> None:
        """Forget an adapter that was deleted."""
        self.losses.forget(adapter_name)
        # The first of its layers to be deleted.
        if adapter_name in self.contextual:
            self.contextual.discard(adapter_name)
            self.deletions[adapter_name] += 1

    def _before_forward(self, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        # In evaluation nothing is stored unless needed, since a compiled forward would be recompiled.
        if not model.training and self.trace is None and not self.contextual:
            return
        nested = bool(self._reading)
        if nested and not _is_encoder_decoder(self._reading[0].model):
            return  # the decoder inside of a model that has read the arguments already
        arguments = dict(zip(self._argument_names[model], args, strict=False)) | kwargs
        sequences = None
        if not _is_encoder_decoder(model) or nested:
            names = None if self.rows is None else self.rows.adapter_names
            sequences = sequences_of(model, arguments, names, bool(self.contextual))
        if not nested and self._rows_alone is not None:
            self._rows_alone.reset_excess()
        self._reading.append(_Reading(model, arguments, self.sequences))
        self.sequences = sequences
        if nested:
            return
        if model.training:
            self._begin_training_forward()
        if self.trace is not None:
            self.trace.begin_forward(_batch_of(arguments), None if sequences is None else sequences.flat_valid)

    def _begin_training_forward(self) -> None:
        self._forwards += 1
        self.forward_number = self._forwards
        self._learned = []
        self.losses.begin_forward()

    def _end_training_forward(self) -> None:
        self.forward_number = None
        add_up(self._learned, self.process_group)
        self._learned = []
        self.losses.end_forward()

    def _after_forward(self, model: nn.Module, args: tuple, output: Any) -> Any:
        if not self._reading or self._reading[-1].model is not model:
            return None
        _, arguments, outer = self._reading.pop()
        state = None if self.sequences is None else self.sequences.state_after()
        if state is not None and output is not None:
            cache = given_cache(arguments)
            cache = returned_cache(output) if cache is None else cache
            if cache is not None:
                put_state(cache, state)
        self.sequences = outer
        if self._reading or self.forward_number is None:
            return None
        self._end_training_forward()
        if self.losses.expected and self._add_losses is not None and output is not None:
            return self._add_losses(model, arguments, output)
        return None

    # -- called by the layers -----------------------------------------------------------------------------------

    def note_learned(self, sums: Sequence[Tensor]) -> None:
        """New sums of a layer, to be added up over the ranks, in place, when the forward ends."""
        if self.forward_number is not None:
            self._learned += sums

    def each_row_alone(self, batch: int, tokens: int, device: torch.device) -> Sequences:
        """For layers called without their model: each row is a separate sequence that nothing continues."""
        sequences = self._rows_alone
        if sequences is None or (sequences.batch, sequences.tokens, sequences.device) != (batch, tokens, device):
            # In training a layer may keep it, and it holds no activations.
            sequences = self._rows_alone = Sequences(batch, tokens, device)
        elif not self._reading:
            # Outside a forward it is not known which layers belong together.
            sequences.reset_excess()
        return sequences

    # -- scopes --------------------------------------------------------------------------------------------------

    @contextmanager
    def answering(self, rows: BatchRows, saved_whole: Sequence[AuxiliaryTrainingWrapper]) -> Iterator[None]:
        """Within this context, every forward has these rows.

        Args:
            rows: the adapter of each row.
            saved_whole: the model's modules that adapters keep a whole copy of (`modules_to_save`).

        Raises:
            RuntimeError: if other rows are set already.
        """
        if self.rows is not None:
            raise RuntimeError(
                "The model is already answering a batch with `adapter_names`. It serves one call at a time: wait for "
                "that one, or put the rows into one batch."
            )
        choose = partial(_choose_copies, names=rows.adapter_names)
        handles = [module.register_forward_pre_hook(choose, with_kwargs=True) for module in saved_whole]
        self.rows = rows
        try:
            yield
        finally:
            self.rows = None
            for handle in handles:
                handle.remove()

    @contextmanager
    def recording(self, recorder: Recorder) -> Iterator[None]:
        """Within this context, the recorder receives every routing.

        Raises:
            RuntimeError: if another one is.
        """
        if self.trace is not None:
            raise RuntimeError("The routing of this model is being traced already: close that trace first.")
        self.trace = recorder
        try:
            yield
        finally:
            self.trace = None


def _choose_copies(
    module: AuxiliaryTrainingWrapper, args: tuple, kwargs: dict[str, Any], names: list[str]
) -> tuple[tuple, dict[str, Any]]:
    # Modules trained whole choose their copy by row the way PEFT's own layers do. With beams a batch is a multiple of
    # the names.
    repeat = max(1, len(args[0]) // len(names)) if args else 1
    adapters = module._get_available_adapters()
    row_names = [name if name in adapters else BASE_ROW for name in names]
    kwargs["adapter_names"] = [name for name in row_names for _ in range(repeat)]
    return args, kwargs
