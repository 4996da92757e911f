# SPDX-License-Identifier: Apache-2.0
"""A PEFT tuner whose batches may mix adapters, and whose layers know the tokens of each forward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTuner
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from .batch_rows import BASE_ROW, BatchRows, check_names
from .context import ForwardContext, context_of


class RowsModel(BaseTuner):
    """Base class of SLIM and the other methods: one context for all layers, and rows of one batch.

    Attributes:
        context: what the layers need to know about a forward; shared by all of them.
    """

    context: ForwardContext

    def __init__(self, model: nn.Module, *args: Any, **kwargs: Any) -> None:
        # A model that had adapters before keeps its context. Building the tuner already needs it.
        context = context_of(model)
        self.context = ForwardContext() if context is None else context
        super().__init__(model, *args, **kwargs)
        # A wrapper starts in training mode; a base model that was just loaded is in evaluation mode.
        self.training = model.training
        if not self.context.attached:
            self.context.attach(model, self._add_losses)

    def _add_losses(self, model: nn.Module, arguments: dict[str, Any], output: Any) -> Any:
        """The output of a training forward with the method's own losses in its loss."""
        raise NotImplementedError

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        if isinstance(child, AuxiliaryTrainingWrapper):
            # PEFT's own version hands its weight on, which for trained rows of tokens is computed and no parameter.
            setattr(parent, child_name, new_module)
            return
        super()._replace_module(parent, child_name, new_module, child)

    def unload(self) -> nn.Module:
        model = super().unload()
        self.context.detach()
        return model

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """PEFT's way in for `adapter_names`, one name per row; `"__base__"` is the base model."""
        adapter_names = kwargs.pop("adapter_names", None)
        if adapter_names is None:
            yield
            return
        self._check_rows(adapter_names, args, kwargs)
        saved_whole = [module for module in self.modules() if isinstance(module, AuxiliaryTrainingWrapper)]
        with self.context.answering(BatchRows(adapter_names), saved_whole):
            yield

    def _check_rows(self, adapter_names: list[str], args: tuple, kwargs: dict[str, Any]) -> None:
        check_names(adapter_names, self.peft_config, self.training)
        inputs = [kwargs.get(n) for n in ("input_ids", "inputs", "inputs_embeds")] + list(args[:1])
        batch = next((t for t in inputs if isinstance(t, Tensor)), None)
        if batch is not None and len(batch) != len(adapter_names):
            raise ValueError(
                "Length of `adapter_names` should be the same as the number of inputs, but got "
                f"{len(adapter_names)} and {len(batch)} respectively."
            )


def check_name(adapter_name: str) -> None:
    """Whether an adapter may have this name.

    Torch makes it an attribute of its containers and a part of dotted keys.

    Raises:
        ValueError: if it may not.
    """
    taken = hasattr(nn.ParameterDict(), adapter_name) or hasattr(BufferDict(), adapter_name)
    if not adapter_name or "." in adapter_name or adapter_name == BASE_ROW or taken:
        raise ValueError(
            f"An adapter cannot be named {adapter_name!r}: choose a name without dots that is neither {BASE_ROW!r} "
            "nor a word that torch uses itself, such as 'my-adapter'."
        )
