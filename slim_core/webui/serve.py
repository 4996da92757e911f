# SPDX-License-Identifier: Apache-2.0
"""From settings to a running app."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from ..inference import BaseSwitch, Engine, open_base
from ..paths import DEMO
from .backend import Backend
from .choices import choices_of, first_choice
from .config import Config
from .forgetting import RESULTS, read_results
from .page import build


def open_app(config: Config, gpu: Callable[..., Any] | None = None, demo: Path = DEMO) -> gr.Blocks:
    """Load the model and build the interface around it.

    Args:
        config: what to load, and limits.
        gpu: a decorator that lends a GPU for one call, where the machine has none of its own.
        demo: the demo's folder, used where the settings name no base.

    Raises:
        EngineError: if something cannot be loaded; its message is one sentence.
    """
    return build(open_backend(config, demo, gpu), config, stored_results(config, demo))


def stored_results(config: Config, demo: Path) -> dict[str, Any] | None:
    """Stored scores of the loaded adapters: the demo's, or those that lie beside SLIM, else beside the LoRA."""
    if not config.base:
        return read_results(demo / RESULTS)
    found = (read_results(Path(folder) / RESULTS) for folder in (config.slim, config.lora) if folder)
    return next(filter(None, found), None)


def open_backend(config: Config, demo: Path, gpu: Callable[..., Any] | None = None) -> Backend:
    """The base that the settings name, or the demo's, and what visitors may put in its place."""
    lent = gpu is not None
    engine, choices = open_engine(config, demo, lent), choices_of(config, demo, lent)
    switch = None if choices.fixed else BaseSwitch(engine, first_choice(config, demo), config.device or None)
    return Backend(engine, gpu, config.store_limits, switch, choices, config.concurrency)


def open_engine(config: Config, demo: Path, lent: bool = False) -> Engine:
    """The engine that the settings name, or the demo's."""
    # Where a GPU is lent, the model is put there when the app starts and moves to the real one at the first call.
    return open_base(first_choice(config, demo), config.device or ("cuda" if lent else None))
