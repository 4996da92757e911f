# SPDX-License-Identifier: Apache-2.0
"""SLIM's own losses in the loss of the model: L1 on the factors (Section 3.4) and an optional load balance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss

from .given import IGNORED
from .layer import SlimLayer
from .losses import LossTerms
from .merging import l1_penalty


def extra_losses(model: nn.Module) -> dict[str, Tensor]:
    """The losses that SLIM adds to the task's loss, by name, already multiplied by their coefficients.

    A model in training mode that is given labels has them in the loss that it returns. They are then for reading and
    have no gradient: adding them again shifts the loss but does not change the training. Where the loss is computed
    elsewhere, they are to be added to it, once after each training forward:

        >>> model.train()
        >>> loss = my_loss(model(**inputs).logits) + sum(slim_core.extra_losses(model).values())

    Args:
        model: a model with SLIM adapters, however they were attached.

    Returns:
        `"l1"` (with `l1_coefficient > 0`): sum over layers and experts of |B|_1 / (r C_out) + |A|_1 / (r C_in).
        `"balance"` (with `balance_coefficient > 0`): mean over routers of E * sum_e f_e P_e.
        Each a () float32 tensor; empty if no active adapter has such a loss.

    Raises:
        RuntimeError: if the balance loss is wanted but the forward was run without gradients, as the reentrant kind
            of gradient checkpointing does. The forward itself raises it where the model is given labels.
    """
    layers = _layers(model)
    if not layers:
        return {}
    terms = layers[0].context.losses
    terms.asked_for()
    return _compute(layers, terms) if terms.added is None else dict(terms.added)


def add_extra_losses(model: nn.Module, arguments: dict[str, Any], output: Any) -> Any:
    """The output of a training forward, with SLIM's losses in its loss if it has one; see `add_to_loss`."""
    layers = _layers(model)
    terms = layers[0].context.losses
    return add_to_loss(model, arguments, output, terms, lambda: _compute(layers, terms))


def add_to_loss(
    model: nn.Module,
    arguments: dict[str, Any],
    output: Any,
    terms: LossTerms,
    compute: Callable[[], dict[str, Tensor]],
) -> Any:
    """The output of a training forward, with a method's own losses in its loss if it has one.

    An optimiser step may be several forwards. A Trainer divides the loss by their number, or tells each the number of
    labels in all of them (`num_items_in_batch`), by which the model divides instead of by its own. Then these losses
    count with the forward's share of the labels. Either way a step has their mean over its forwards, once.

    Args:
        model: the model that was adapted.
        arguments: of that forward, by name.
        output: a dictionary with a `"loss"`, or a tuple that begins with it where labels were given.
        terms: the object that is notified that the losses were added.
        compute: gives the losses by name, () each, multiplied by their coefficients.
    """
    if isinstance(output, dict):
        loss = output.get("loss")
    else:
        loss = output[0] if isinstance(output, tuple) and arguments.get("labels") is not None else None
    if not isinstance(loss, Tensor):
        return output
    losses = compute()
    terms.asked_for()
    terms.added = {name: value.detach() for name, value in losses.items()}
    share = _share_of_step(model, arguments)
    for value in losses.values():
        loss = loss + (value * share).to(loss.device)
    if isinstance(output, tuple):
        return (loss, *output[1:])
    output["loss"] = loss
    return output


def _layers(model: nn.Module) -> list[SlimLayer]:
    return [module for module in model.modules() if isinstance(module, SlimLayer)]


def _compute(layers: list[SlimLayer], terms: LossTerms) -> dict[str, Tensor]:
    losses: dict[str, Tensor] = {}
    coefficients: dict[str, float] = {}
    for layer in layers:
        for name in layer.active_adapters:
            config = layer.slim_config.get(name)
            if config is None:
                continue
            coefficients[name] = config.balance_coefficient
            if config.l1_coefficient:
                term = l1_penalty(layer.slim_A[name], layer.slim_B[name], config.num_experts)
                _add(losses, "l1", config.l1_coefficient * term)
    for name, coefficient in coefficients.items():
        balance_terms = terms.balance.get(name)
        if coefficient and balance_terms:
            if torch.is_grad_enabled() and not all(term.requires_grad for term in balance_terms):
                raise RuntimeError(
                    "The balance loss has no gradient: the forward ran without one, under `torch.no_grad()` or the "
                    "reentrant kind of gradient checkpointing. For the latter pass "
                    'gradient_checkpointing_kwargs={"use_reentrant": False}.'
                )
            _add(
                losses,
                "balance",
                coefficient * torch.stack([term.to(balance_terms[0].device) for term in balance_terms]).mean(),
            )
    return losses


def _add(losses: dict[str, Tensor], name: str, term: Tensor) -> None:
    # The layers of a large model may be on several devices.
    losses[name] = losses[name] + term.to(losses[name].device) if name in losses else term


def _share_of_step(model: nn.Module, arguments: dict[str, Any]) -> float | Tensor:
    """The share of an optimiser step's labels that is in this forward; 1 if the total is unknown."""
    items, labels = arguments.get("num_items_in_batch"), arguments.get("labels")
    if items is None or not isinstance(labels, Tensor):
        return 1.0
    if isinstance(arguments.get("shift_labels"), Tensor):
        labels = arguments["shift_labels"]
    elif _shifts_labels(model):
        labels = labels[..., 1:]
    return (labels != IGNORED).sum() / items


def _shifts_labels(model: nn.Module) -> bool:
    """Whether the model's loss leaves the first label of each row out, as transformers' Trainer determines it."""
    is_encoder_decoder = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    return LOSS_MAPPING.get(getattr(model, "loss_type", "")) is ForCausalLMLoss and not is_encoder_decoder
