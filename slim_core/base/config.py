# SPDX-License-Identifier: Apache-2.0
"""A base model's config from outside: bounded before it is used, and without fields that ask for other code."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from ..outside.errors import quoted


# Limits for fields (by the end of their name) that say how often transformers repeats something. The largest models in
# use have about 130 layers and 512 experts.
COUNTS = (
    (re.compile(r"(?:^|_)(?:layers?|blocks?|depths?)\Z"), 1_000),
    (re.compile(r"(?:^|_)experts?\Z"), 4_096),
    (re.compile(r"(?:^|_)labels\Z"), 100_000),
)
# No other number in a config comes near this.
LARGEST = 2**40
# The same for numbers in lists, where some families say how often something is repeated.
LARGEST_IN_LIST = 2**20
# A layer takes 20 to 30 torch calls, one with separate experts some thousand. Nothing is allocated on the meta device,
# but each call creates objects that stay in memory.
BUILD_CALLS = 200_000
# Sizes that every language model has, under transformers' common names.
SIZES = ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size", "max_position_embeddings")


class BaseConfigError(ValueError):
    """What is wrong with a base's config, as the part of a message after a colon."""


def read_base_config(name: str | Path, revision: str | None = None) -> PreTrainedConfig:
    """The config of a base model, for use with transformers' own code only.

    Args:
        name: folder or Hub id.
        revision: branch, tag or commit on the Hub.

    Raises:
        BaseConfigError: if a number in it is out of its range.
        Exception: whatever transformers raises if the config is missing or unknown.
    """
    raw, _ = PreTrainedConfig.get_config_dict(name, revision=revision)
    for field, number, in_list in _numbers(raw):
        _check_number(field, number, in_list)
    config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    _check_sizes(config)
    # A config may name kernels of another repository; the library's own do.
    config._attn_implementation = None
    config._experts_implementation = None
    return config


def build_empty(config: PreTrainedConfig, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The causal language model that a config describes, on the meta device: shapes, and no weights.

    Args:
        config: as `read_base_config` returns it.
        dtype: of its weights; None for torch's default.

    Raises:
        BaseConfigError: if it is larger than any model.
        Exception: whatever transformers raises for what it cannot build.
    """
    with _CallLimit(BUILD_CALLS), torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)


def _numbers(raw: dict[str, Any]) -> Iterator[tuple[str, int, bool]]:
    """Every integer in nested JSON, with its field and whether it is in a list.

    Without recursion, since the nesting may be too deep for it.
    """
    to_check: list[tuple[str, Any, bool]] = [("", raw, False)]
    while to_check:
        field, value, in_list = to_check.pop()
        if isinstance(value, dict):
            to_check += [(f"{field}.{name}" if field else str(name), inner, False) for name, inner in value.items()]
        elif isinstance(value, list):
            to_check += [(field, inner, True) for inner in value]
        elif isinstance(value, int) and not isinstance(value, bool):
            yield field, value, in_list


def _check_number(field: str, number: int, in_list: bool) -> None:
    """Refuse a count with which building the model would take minutes and gigabytes."""
    name = field.rpartition(".")[2]
    limit = next((limit for ending, limit in COUNTS if ending.search(name)), LARGEST)
    if in_list:
        limit = min(limit, LARGEST_IN_LIST)
    if number > limit or -number > LARGEST:
        digits = f"{number:,}" if abs(number) < 10**30 else "a number of more than 30 digits"
        raise BaseConfigError(f"`{quoted(field)[1:-1]}` in its config is {digits}; at most {limit:,} is read")


def _check_sizes(config: PreTrainedConfig) -> None:
    """Refuse a model of size zero, which would fit anywhere."""
    text = config.get_text_config()
    for name in SIZES:
        if name in (text.per_layer_attributes or ()):
            continue
        value = getattr(text, name, None)
        if isinstance(value, int) and value < 1:
            raise BaseConfigError(f"`{name}` in its config is {value:,}; it must be at least 1")


class _CallLimit(TorchFunctionMode):
    """Stops building a model after a number of torch calls. It affects only its own thread."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._most, self._calls = limit, 0

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self._calls += 1
        if self._calls > self._most:
            raise BaseConfigError("it describes more layers and experts together than any model has")
        return function(*args, **(kwargs or {}))
