# SPDX-License-Identifier: Apache-2.0
"""ZeroGPU: the work runs in a separate process, and only plain values come back from it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..inference import EngineError
from ..inference.types import Drift, Step


# The arrays of a `RoutingRecord`.
RECORDED = ("weights", "distance", "cluster", "gate", "reference")
T = TypeVar("T")


@dataclass(frozen=True)
class Failure:
    """An error in the other process. Of an exception, only the name of its class would arrive here."""

    sentence: str


def on_zero_gpu(
    gpu: Callable[..., Any], work: Callable[..., Iterator[T]], seconds: Callable[..., int]
) -> Callable[..., Generator[T, None, None]]:
    """Work that runs with a GPU of ZeroGPU's for the duration of one call.

    Args:
        gpu: the decorator that assigns the GPU, such as `spaces.GPU`.
        work: a generator function that yields the engine's values, or plain ones.
        seconds: how long the GPU is requested for; called with the arguments of `work`.

    Returns:
        `work`, to be called in the same way.
    """

    def remote(*arguments: Any) -> Iterator[Any]:
        try:
            for item in work(*arguments):
                yield _changed(item, Tensor.numpy)
        except EngineError as error:
            yield Failure(str(error))

    with_gpu = gpu(duration=seconds)(remote)

    def run(*arguments: Any) -> Generator[T, None, None]:
        with closing(with_gpu(*arguments)) as items:
            for item in items:
                if isinstance(item, Failure):
                    raise EngineError(item.sentence)
                yield _changed(item, torch.from_numpy)

    return run


def _changed(item: Any, change: Callable[[Any], Any]) -> Any:
    """The value with its arrays converted. A tensor would be sent as an open file, which ends with its process."""
    if not isinstance(item, Step | Drift):
        return item
    if isinstance(item, Drift):
        parts = (replace(record, log_ratio=change(record.log_ratio), kl=change(record.kl)) for record in item.variants)
        return replace(item, variants=tuple(parts))
    routing = {
        row: replace(record, **{name: change(getattr(record, name)) for name in RECORDED})
        for row, record in item.routing.items()
    }
    return replace(item, routing=routing)
