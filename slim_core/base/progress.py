# SPDX-License-Identifier: Apache-2.0
"""Progress of long work on a base model, including transformers' weight loading without its own progress bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from transformers.utils.logging import set_tqdm_hook


OnProgress = Callable[[int, int], None]
"""Called with what is done so far and with all that is to do."""


@contextmanager
def weight_progress(on_progress: OnProgress = lambda done, total: None) -> Iterator[None]:
    """Report the progress of transformers' weight loading to a callback; shows nothing itself.

    Args:
        on_progress: called with weights loaded so far and in all.
    """

    def hook(factory: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        if not args or kwargs.get("desc") != "Loading weights":
            return factory(*args, **kwargs)
        return _ReportingBar(factory(*args, **kwargs | {"disable": True}), len(args[0]), on_progress)

    previous_hook = set_tqdm_hook(hook)
    try:
        yield
    finally:
        set_tqdm_hook(previous_hook)


class _ReportingBar:
    """A progress bar that reports to a callback."""

    def __init__(self, bar: Any, total: int, on_progress: OnProgress) -> None:
        self._bar, self._total, self._on_progress = bar, total, on_progress

    def __iter__(self) -> Iterator[Any]:
        for done, item in enumerate(self._bar):
            self._on_progress(done, self._total)
            yield item

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bar, name)
