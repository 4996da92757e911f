# SPDX-License-Identifier: Apache-2.0
"""Worker processes that end with this one."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from ..noise import hush


def worker_pool(workers: int, begin: Callable[..., None] | None = None, *shared: Any) -> ProcessPoolExecutor:
    """A pool of processes that share the threads of this one.

    Args:
        workers: how many.
        begin: called in each with `shared`, which can only be passed when a process starts.
        shared: as above.
    """
    threads = max(1, torch.get_num_threads() // workers)
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin, (threads, begin, shared))


def _begin(threads: int, begin: Callable[..., None] | None, shared: tuple[Any, ...]) -> None:
    torch.set_num_threads(threads)
    hush()
    disable_progress_bar()
    # If the parent is killed, its workers would otherwise continue with the queued work.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if begin is not None:
        begin(*shared)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None  # this is a worker
    parent.join()
    os._exit(1)
