# SPDX-License-Identifier: Apache-2.0
"""Task losses that forget less than cross entropy and can be combined with any method.

They take the place of the loss that the model itself computes in a training forward, so that whatever a method adds to
it is still added. In evaluation the loss is the cross entropy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from ..method.given import IGNORED


# How many of the likeliest tokens EAFT takes the entropy of: its paper's number.
LIKELIEST = 20


def cross_entropy(logits: Tensor, targets: Tensor, base: Tensor | None, weight: float) -> Tensor:
    """(N,) -log p(target), from (N, V) logits and (N,) targets."""
    return F.cross_entropy(logits, targets, reduction="none")


def entropy_adaptive(logits: Tensor, targets: Tensor, base: Tensor | None, weight: float) -> Tensor:
    """EAFT (arXiv 2601.02151): the cross entropy times the model's own uncertainty, from 0 to 1.

    The uncertainty is the entropy over the 20 likeliest tokens, their probabilities divided by their sum, divided by
    its largest value log 20; it has no gradient. Tokens where the model is sure of another one teach it little.

    Args:
        logits: (N, V).
        targets: (N,).

    Returns:
        (N,) in nats.
    """
    with torch.no_grad():
        log_p = logits.topk(min(LIKELIEST, logits.shape[-1]), dim=-1).values.log_softmax(-1)
        uncertainty = -(log_p.exp() * log_p).sum(-1) / math.log(log_p.shape[-1])
    return uncertainty * cross_entropy(logits, targets, base, weight)


def mask_the_target(logits: Tensor, targets: Tensor, base: Tensor | None, weight: float) -> Tensor:
    """Mask-the-Target (arXiv 2605.29498): cross entropy + weight * KL(base || model) over all tokens but the target.

    The target is taken out of both distributions, and the rest of each is divided by its sum: what the model must
    learn is not held back, and how the base ranks everything else is kept.

    Args:
        logits: (N, V) of the model.
        targets: (N,).
        base: (N, V) logits of the base.
        weight: factor of the divergence. Default `1.0`: this project's choice, with which it counts as much as the
            cross entropy.

    Returns:
        (N,) in nats.
    """
    assert base is not None  # `needs_base`
    out = F.one_hot(targets, logits.shape[-1]).bool()
    log_q = logits.masked_fill(out, -math.inf).log_softmax(-1)
    log_p = base.float().masked_fill(out, -math.inf).log_softmax(-1)
    # If both are -inf, their difference is NaN.
    kl = (log_p.exp() * (log_p - log_q).masked_fill(out, 0)).sum(-1)
    return cross_entropy(logits, targets, base, weight) + weight * kl


class Loss(NamedTuple):
    """A loss of the task.

    Attributes:
        of_tokens: gives (N,) losses from (N, V) float32 logits, (N,) targets, the base's logits and a weight.
        needs_base: whether it asks for the base's logits, which cost a second forward.
        weight: its own factor of what it adds to the cross entropy; None if it has none.
    """

    of_tokens: Callable[[Tensor, Tensor, Tensor | None, float], Tensor]
    needs_base: bool = False
    weight: float | None = None


LOSSES = {
    "cross-entropy": Loss(cross_entropy),
    "eaft": Loss(entropy_adaptive),
    "mask-the-target": Loss(mask_the_target, needs_base=True, weight=1.0),
}


class TaskLoss:
    """Replaces the model's own loss in training forwards.

    Args:
        model: with its adapter.
        name: of `LOSSES`.
        weight: its factor; None for its own.
    """

    def __init__(self, model: PeftModel, name: str, weight: float | None = None) -> None:
        self._loss = LOSSES[name]
        self._weight = (self._loss.weight or 0.0) if weight is None else weight
        self._model = model
        self._base: Tensor | None = None
        base = cast(PreTrainedModel, model.get_base_model())
        self._base_loss = base.loss_function
        self._module = base
        if name != "cross-entropy":
            base.loss_function = self

    def __call__(self, logits: Tensor, labels: Tensor, vocab_size: int, **kwargs: Any) -> Tensor:
        """() the mean over the tokens that are learned, or their sum divided by `num_items_in_batch`."""
        if not self._module.training:
            return self._base_loss(logits=logits, labels=labels, vocab_size=vocab_size, **kwargs)
        learned, targets = _learned(labels)
        base = None if self._base is None else self._base.to(logits.device)
        losses = self._loss.of_tokens(logits.float()[learned], targets.to(logits.device), base, self._weight)
        items = kwargs.get("num_items_in_batch")
        if items is None:
            return losses.mean()
        return losses.sum() / (items.to(losses.device) if isinstance(items, Tensor) else items)

    @contextmanager
    def knowing_the_base(self, inputs: dict[str, Any]) -> Iterator[None]:
        """Within this context, the base's logits for these inputs are available if the loss needs them."""
        if self._loss.needs_base and self._module.training:
            learned, _ = _learned(inputs["labels"])
            without_labels = {name: value for name, value in inputs.items() if name != "labels"}
            self._model.eval()
            try:
                with torch.no_grad(), self._model.disable_adapter():
                    self._base = self._model(**without_labels, use_cache=False).logits[learned]
            finally:
                self._model.train()
        try:
            yield
        finally:
            self._base = None


def _learned(labels: Tensor) -> tuple[Tensor, Tensor]:
    """(B, T) bool, which logits predict a token that is learned, and (N,) these tokens."""
    next_ones = F.pad(labels, (0, 1), value=IGNORED)[..., 1:]
    learned = next_ones != IGNORED
    return learned, next_ones[learned]
