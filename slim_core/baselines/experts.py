# SPDX-License-Identifier: Apache-2.0
"""A method at one place in a base: its tensors, their initial values, and its forward.

The PEFT layer that trains it (`layer.py`), the row of the engine that answers with it, and the checks of its files all
ask the same object.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .places import Kind, Place


Tensors = Mapping[str, Tensor]
C = TypeVar("C", bound=Any)


def _call(module: nn.Module, x: Tensor) -> Tensor:
    return module(x)


@dataclass
class Running:
    """What a method is told about the current forward.

    Attributes:
        learning: whether the adapter is being trained by it.
        note: takes a router's (T, E) probabilities, for the method's losses or a record; None if nobody wants them.
            Losses are computed when the forward ends: a checkpoint's second forward must compute what its first did.
        call: how modules of the base are called.
    """

    learning: bool = False
    note: Callable[[Tensor], None] | None = None
    call: Callable[[nn.Module, Tensor], Tensor] = field(default=_call)


class Noted(NamedTuple):
    """What one place recorded in a training forward.

    Attributes:
        place: which.
        probabilities: (T, E) float32 of its router.
        valid: (T,) bool, False for padding; None if every token counts.
        batch: B, the sequences among the tokens; None if unknown.
        types: (B,) kinds of the samples, 0 or 1, if they are known.
    """

    place: Place
    probabilities: Tensor
    valid: Tensor | None = None
    batch: int | None = None
    types: Tensor | None = None


class Experts(Generic[C]):
    """A method at one place.

    Args:
        config: of the adapter.
        place: where.

    Attributes:
        prefix: of its tensors' names in PEFT and in files.
        keys: all names that its tensors may have, without the prefix.
        kinds: of places that it can be at.
        routing: what happens to a token, in words.
        scale: factor s = alpha / r of what it adds.
    """

    prefix: ClassVar[str]
    keys: ClassVar[tuple[str, ...]] = ("A", "B")
    kinds: ClassVar[tuple[Kind, ...]] = ("linear",)
    routing: ClassVar[str] = "every token goes through it, without a router"

    def __init__(self, config: C, place: Place) -> None:
        self.config, self.place = config, place
        self.scale: float = config.alpha / config.r

    # -- tensors -------------------------------------------------------------------------------------------------

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each of its tensors here."""
        raise NotImplementedError

    def start(self, tensors: Tensors) -> None:
        """Initialise in place: A like a Linear, B = 0, so that a new adapter changes nothing."""
        for key, tensor in tensors.items():
            if key.endswith("B") and self.config.init_weights:
                nn.init.zeros_(tensor)
            else:
                # In two dimensions: from the shape of a stack torch would count the rank as inputs.
                nn.init.kaiming_uniform_(tensor.flatten(0, -2), a=5**0.5)

    def prepared(self, tensors: Tensors) -> Tensors:
        """Tensors prepared once for inference."""
        return tensors

    @classmethod
    def size(cls, shapes: Mapping[str, tuple[int, ...]]) -> tuple[Kind, int, int]:
        """The kind of place and its channels (as in `Place`), from the shapes of its tensors.

        Raises:
            KeyError, IndexError: if a tensor is missing, or has too few dimensions.
        """
        return "linear", shapes["A"][-1], shapes["B"][-2]

    # -- numbers -------------------------------------------------------------------------------------------------

    def forward(self, tensors: Tensors, x: Tensor, output: Tensor | None, module: nn.Module, now: Running) -> Tensor:
        """The output of the module with the adapter.

        Args:
            tensors: its tensors, or what `prepared` gave.
            x: (..., C_in) the module's input.
            output: (..., C_out) of the base's own module; None if it was not computed yet.
            module: the base's own module.
            now: the running forward.

        Returns:
            (..., C_out), in the dtype of the base's output.
        """
        result = now.call(module, x) if output is None else output
        tokens = x.reshape(-1, x.shape[-1])
        added = self.added(tensors, tokens, now).view(*result.shape)
        return (result + added).to(result.dtype)

    def added(self, tensors: Tensors, tokens: Tensor, now: Running) -> Tensor:
        """(T, C_out) what is added to a Linear's output for (T, C_in) tokens."""
        raise NotImplementedError

    def weights(self, probabilities: Tensor) -> Tensor:
        """(T, E) what its LoRA experts weigh, from the router's (T, E) probabilities; as wide at all places."""
        return probabilities

    def dropped(self, x: Tensor, now: Running) -> Tensor:
        """The experts' input, with dropout in training."""
        return F.dropout(x, self.config.dropout) if now.learning and self.config.dropout else x

    # -- losses --------------------------------------------------------------------------------------------------

    @classmethod
    def wants_losses(cls, config: C) -> bool:
        """Whether it adds a term to the task's loss."""
        return False

    @classmethod
    def losses(cls, config: C, noted: list[Noted], adapters: Iterable[tuple[Experts, Tensors]]) -> dict[str, Tensor]:
        """Its terms in the loss of a forward, by name, multiplied by their coefficients; () float32 each.

        Args:
            config: of the adapter.
            noted: what its places noted, in the order in which they ran.
            adapters: its places with their tensors.
        """
        return {}

    # -- files ---------------------------------------------------------------------------------------------------

    @classmethod
    def routed(cls, config: C) -> int:
        """How many LoRA experts its router chooses among, at most; 0 without a router."""
        return 0

    @classmethod
    def refused(cls, config: C) -> tuple[str, str] | None:
        """A field of a configuration that rows do not support, with a message; None if there is none."""
        return None

    @classmethod
    def blocks(cls, config: C) -> int | None:
        """The number of decoder blocks of a saved configuration's base; None if unknown."""
        return None

    @classmethod
    def updates(cls, key: str) -> bool:
        """Whether a tensor of zeros leaves the base unchanged."""
        return key.endswith("B")

    # -- settings ------------------------------------------------------------------------------------------------

    @classmethod
    def default_targets(cls, linears: Mapping[str, tuple[int, int]]) -> set[str] | str:
        """`target_modules` if none are named.

        Args:
            linears: (C_in, C_out) of the base's Linears except its head, by name.

        Raises:
            ValueError: if the base has none of them.
        """
        return "all-linear"

    @classmethod
    def resolve(cls, config: C, blocks: int) -> None:
        """Complete a configuration in place for a base with this many decoder blocks.

        Raises:
            ValueError: if it was made for another number.
        """


def router_probabilities(router: Tensor, tokens: Tensor) -> Tensor:
    """(T, E) float32 softmax of (E, C_in) times (T, C_in)."""
    return F.linear(tokens.to(router.dtype), router).float().softmax(-1)


def shares(noted: Noted, k: int) -> Tensor:
    """The terms of load balances, without padding.

    Args:
        noted: of a router.
        k: K, the experts that it keeps.

    Returns:
        (K + 1, E) float32: for each of the K choices the share of tokens that went to each expert, and at last the
        mean probability of each. Differentiable through the last.
    """
    probabilities, valid = noted.probabilities, noted.valid
    number = probabilities.shape[-1]
    experts = probabilities.topk(k, dim=-1).indices
    sent = F.one_hot(experts, number).to(probabilities.dtype)
    if valid is None or len(valid) != len(probabilities):
        return torch.cat([sent.mean(0), probabilities.mean(0, keepdim=True)])
    count = valid.sum().clamp(min=1)
    # Not a product, since values in padding may be NaN.
    kept = torch.where(valid.unsqueeze(-1), probabilities, 0).sum(0, keepdim=True)
    return torch.cat([(sent * valid.view(-1, 1, 1)).sum(0), kept]) / count
