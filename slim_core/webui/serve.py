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
from .forgetting import RESULTS, read_results
from .page import ASSETS, build


DEMO_NAME = "SLIM demo"


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
    return build(Backend(engine, gpu, config.store_limits), config, stored_results(config, demo))


def stored_results(config: Config, demo: Path) -> dict[str, Any] | None:
    """Stored scores of the loaded adapters: the demo's, or those that lie beside SLIM, else beside the LoRA."""
    if not config.base:
        return read_results(demo / RESULTS)
    found = (read_results(Path(folder) / RESULTS) for folder in (config.slim, config.lora) if folder)
    return next(filter(None, found), None)


def open_engine(config: Config, demo: Path, lent: bool = False) -> Engine:
    """The engine that the settings name, or the demo's."""
    base, lora, slim, name = config.base, config.lora or None, config.slim or None, None
    if not base:
        if not (demo / "base").is_dir():
            raise EngineError(
                f"There is no demo model in {demo}: make it with `python -m slim_core demo build`, or name your own "
                "with SLIM_BASE, SLIM_LORA and SLIM_SLIM."
            )
        base, lora, slim, name = str(demo / "base"), str(demo / "lora"), str(demo / "slim"), DEMO_NAME
    # Where a GPU is lent, the model is put there when the app starts and moves to the real one at the first call.
    device = config.device or ("cuda" if lent else None)
    return load_engine(base, lora=lora, slim=slim, name=name, device=device, four_bit=config.load_4bit)
