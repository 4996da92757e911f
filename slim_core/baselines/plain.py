# SPDX-License-Identifier: Apache-2.0
"""PEFT's own methods: LoRA (on all Linears or only on MLPs, rewound, or without intruders), DoRA, and OFT."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import torch
from peft import LoraConfig, OFTConfig, PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.intruders import reduce_intruder_dimension
from torch import nn

from ..method import SlimConfig, SlimModel, as_list, check_integer, check_number
from .entry import SHARED, Configure, Method
from .oft import OftExperts
from .places import mlp_linears


Linears = Mapping[str, tuple[int, int]]
NO_OPTIONS: Mapping[str, Any] = {}
REWOUND = {"scale": 0.5}
INTRUDERS = {"top_k": 10, "threshold": 0.5, "share": 0.75}


def _lora(slim: SlimConfig, options: Mapping[str, Any], linears: Linears, dora: bool = False) -> LoraConfig:
    """With SLIM's total rank and its factor alpha / r."""
    shared = {name: getattr(slim, name) for name in SHARED if name != "dropout"}
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=slim.num_experts * slim.r,
        lora_alpha=slim.num_experts * slim.alpha,  # type: ignore[arg-type]  # a factor, which PEFT calls an int
        lora_dropout=slim.dropout,
        target_modules=as_list(slim.target_modules),
        use_dora=dora,
        **shared,
    )


def _lora_mlp(slim: SlimConfig, options: Mapping[str, Any], linears: Linears) -> LoraConfig:
    """Only on the Linears of the MLPs. In PEFT's own comparison of methods this learned more and forgot less."""
    if slim.target_modules != "all-linear":
        raise ValueError("lora-mlp chooses its Linears itself; leave --target out, or choose lora.")
    config = _lora(slim, options, linears)
    config.target_modules = mlp_linears(linears)  # type: ignore[assignment]  # as PEFT itself keeps a list
    if not config.target_modules:
        raise ValueError("lora-mlp adapts the Linears of MLPs, and this base has none that are recognised.")
    return config


def _rewound(slim: SlimConfig, options: Mapping[str, Any], linears: Linears) -> LoraConfig:
    check_number("scale", (REWOUND | dict(options))["scale"], 0, strict=True)
    return _lora(slim, options, linears)


def rewind(model: PeftModel, options: Mapping[str, Any]) -> None:
    """Scale what a trained LoRA adds, through its alpha: closer to the base it regains what it forgot (PEFT-Arena,
    arXiv 2605.28819).

    Args:
        model: with the LoRA.
        options: of the method.

    Options:
        scale (`float`):
            The factor, above 0. Default `0.5`: this project's choice, half-way to the base.
    """
    scale = (REWOUND | dict(options))["scale"]
    for name in model.active_adapters:
        config = cast(LoraConfig, model.peft_config[name])
        config.lora_alpha *= scale
        for layer in _layers(model):
            layer.scaling[name] *= scale


def _without_intruders(slim: SlimConfig, options: Mapping[str, Any], linears: Linears) -> LoraConfig:
    chosen = INTRUDERS | dict(options)
    check_integer("top_k", chosen["top_k"], 1)
    check_number("threshold", chosen["threshold"], 0)
    check_number("share", chosen["share"], 0)
    return _lora(slim, options, linears)


@torch.no_grad()
def reduce_intruders(model: PeftModel, options: Mapping[str, Any]) -> None:
    """Reduce directions of a trained LoRA that the base does not have (Shuttleworth et al., arXiv 2410.21228).

    Args:
        model: with the LoRA.
        options: of the method.

    Options:
        top_k (`int`):
            How many directions of each adapted weight are looked at, the largest first. Default `10`: PEFT's own.
        threshold (`float`):
            A direction is an intruder if its cosine with each of the base's is below this. Default `0.5`: PEFT's own.
        share (`float`):
            The share of an intruder that is kept. Default `0.75`: PEFT's own.

    Raises:
        ValueError: if the base is quantised, so that its directions cannot be computed.
    """
    chosen = INTRUDERS | dict(options)
    name, reduced = model.active_adapters[0], "without-intruders"
    if any(layer.quantization_backend is not None for layer in _layers(model)):
        raise ValueError("lora-intruders needs the base's weights in full precision; leave --four-bit out.")
    reduce_intruder_dimension(
        model,
        old_adapter_name=name,
        new_adapter_name=reduced,
        top_k=chosen["top_k"],
        threshold_epsilon=chosen["threshold"],
        mitigation_lambda=chosen["share"],
        logging_sink=None,
    )
    for layer in _layers(model):
        if reduced in layer.lora_A:
            for factors in (layer.lora_A, layer.lora_B):
                cast(nn.Linear, factors[name]).weight.copy_(cast(nn.Linear, factors[reduced]).weight)
    model.set_adapter(name)
    model.delete_adapter(reduced)


def _layers(model: nn.Module) -> list[LoraLayer]:
    return [module for module in model.modules() if isinstance(module, LoraLayer)]


def _oft(slim: SlimConfig, options: Mapping[str, Any], linears: Linears) -> OFTConfig:
    """OFT has no rank that could be set to SLIM's.

    Options:
        oft_block_size (`int`):
            Channels that are rotated together. Default `32`: PEFT's own.
    """
    shared = {name: getattr(slim, name) for name in SHARED if name not in ("dropout", "trainable_token_indices")}
    if slim.trainable_token_indices:
        raise ValueError("PEFT cannot train single tokens together with OFT; leave --train-closing-token out.")
    return OFTConfig(task_type="CAUSAL_LM", target_modules=as_list(slim.target_modules), **(shared | dict(options)))


def _slim(slim: SlimConfig, options: Mapping[str, Any], linears: Linears) -> SlimConfig:
    return slim


def _variant(
    name: str,
    title: str,
    configure: Configure,
    finish: Callable[..., None] | None = None,
    options: Mapping[str, Any] = NO_OPTIONS,
    own_places: bool = False,
) -> Method:
    return Method(name, title, "LORA", configure, LoraConfig, finish=finish, options=options, own_places=own_places)


LORA = _variant("lora", "LoRA", _lora)
DORA = _variant("dora", "DoRA", partial(_lora, dora=True))
LORA_MLP = _variant("lora-mlp", "LoRA on the MLPs", _lora_mlp, own_places=True)
LORA_REWOUND = _variant("lora-rewound", "LoRA, rewound", _rewound, rewind, REWOUND)
LORA_INTRUDERS = _variant("lora-intruders", "LoRA without intruders", _without_intruders, reduce_intruders, INTRUDERS)
OFT = Method(
    "oft", "OFT", "OFT", _oft, OFTConfig, experts=OftExperts, options={"oft_block_size": OFTConfig.oft_block_size}
)
SLIM = Method("slim", "SLIM", "SLIM", _slim, SlimConfig, SlimModel, options=NO_OPTIONS)
