# SPDX-License-Identifier: Apache-2.0
"""From settings to a running app."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from ..inference import Engine, EngineError, load_engine
from .backend import Backend
from .config import Config
from .forgetting import read_results
from .page import ASSETS, build


def open_app(config: Config, gpu: Callable[..., Any] | None = None, demo: Path = ASSETS / "demo") -> gr.Blocks:
    """Load the model and build the interface around it.

    Args:
        config: what to load, and limits.
        gpu: a decorator that lends a GPU for one call, where the machine has none of its own.
        demo: the demo's folder, used where the settings name no base.

    Raises:
        EngineError: if something cannot be loaded; its message is one sentence.
    """
    engine = open_engine(config, demo, lent=gpu is not None)
    # A stored file says nothing about other models.
    results = None if config.base else read_results(demo / "results.json")
    return build(Backend(engine, gpu), config, results)


def open_engine(config: Config, demo: Path, lent: bool = False) -> Engine:
    """The engine that the settings name, or the demo's."""
    base, lora, slim = config.base, config.lora or None, config.slim or None
    if not base:
        if not (demo / "base").is_dir():
            raise EngineError(
                f"There is no demo model in {demo}: make it with `python -m slim_core demo build`, or name your own "
                "with SLIM_BASE, SLIM_LORA and SLIM_SLIM."
            )
        base, lora, slim = str(demo / "base"), str(demo / "lora"), str(demo / "slim")
    # Where a GPU is lent, the model is put there when the app starts and moves to the real one at the first call.
    device = config.device or ("cuda" if lent else None)
    return load_engine(base, lora=lora, slim=slim, device=device, four_bit=config.load_4bit)
