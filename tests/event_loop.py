# SPDX-License-Identifier: Apache-2.0
"""Code that starts an event loop. The browser tests leave theirs in the thread that the tests run in."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar


T = TypeVar("T")


def in_new_thread(function: Callable[..., T], *arguments: object) -> T:
    """Call a function where no event loop is running.

    Returns:
        What the function returns.
    """
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(function, *arguments).result()
