# SPDX-License-Identifier: Apache-2.0
"""From settings to a running app."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from ..inference import BaseSwitch, Engine, open_base
from ..outside.errors import first_line
from ..paths import DEMO
from ..serving.openai_api import openai_api
from .backend import Backend
from .config import Config, ConfigError
from .http.folder import UploadFolder
from .http.interface import Interface
from .http.log_lines import keep_quiet, one_line
from .http.process_folder import process_folder
from .http.programs import Programs
from .http.request_guard import guarded_requests
from .layout import LEAD, build
from .ready import SCRIPTS, STYLES, check_address, web_asset
from .state.choices import choices_of, first_choice
from .wire.forgetting import RESULTS, read_results
from .wire.methods import FILE, read_methods


def open_app(config: Config, gpu: Callable[..., Any] | None = None, demo: Path = DEMO) -> Interface:
    """Load the model and build the interface around it.

    Args:
        config: what to load, and limits.
        gpu: ZeroGPU's decorator that assigns a GPU for one call; None elsewhere.
        demo: the demo's folder, used where the settings name no base.

    Raises:
        EngineError: if something cannot be loaded; its message is one sentence.
    """
    backend = open_backend(config, demo, gpu)
    interface = build(backend, config, stored_results(config, demo))
    interface.programs = openai_api(
        Programs(backend, config.max_new_tokens), config.api_key or None, config.api_closed
    )
    return interface


def stored_results(config: Config, demo: Path) -> dict[str, Any] | None:
    """Stored scores of the loaded adapters: the demo's, or those next to the SLIM adapter, else next to the LoRA."""
    if not config.base:
        stored, methods = read_results(demo / RESULTS), read_methods(demo.parent / "results" / FILE)
        return stored | {"methods": methods} if stored and methods else stored
    results = (read_results(Path(folder) / RESULTS) for folder in (config.slim, config.lora) if folder)
    return next(filter(None, results), None)


def open_backend(config: Config, demo: Path, gpu: Callable[..., Any] | None = None) -> Backend:
    """The base from the settings, or the demo's, and what visitors may replace it with."""
    zero_gpu = gpu is not None
    engine, choices = open_engine(config, demo, zero_gpu), choices_of(config, demo, zero_gpu)
    switch = None if choices.fixed else BaseSwitch(engine, first_choice(config, demo), config.device or None)
    return Backend(engine, gpu, config.store_limits, switch, choices, config.concurrency)


def open_engine(config: Config, demo: Path, zero_gpu: bool = False) -> Engine:
    """The engine for the base from the settings, or for the demo's."""
    # On ZeroGPU, the model is put on "cuda" when the app starts and moves to the real GPU at the first call.
    engine = open_base(first_choice(config, demo), config.device or ("cuda" if zero_gpu else None))
    # There each prompt is answered by a process of its own, which leaves nothing to the next one.
    engine.keep_at_most(0 if zero_gpu else config.cache_memory)
    return engine


def launch(demo: Interface, config: Config, **options: Any) -> Any:
    """Serve the app. It loads nothing from elsewhere and sends no telemetry.

    Raises:
        ConfigError: if nothing can be served at that address, or nothing be written where uploads go.
    """
    check_address(config)
    folder = UploadFolder(process_folder(config.upload_seconds), config.upload_space, config.upload_seconds)
    demo.folder = folder
    keep_quiet()
    try:
        return _serve(demo, folder, config, **options)
    except Exception as error:
        raise ConfigError(f"The app could not be served: {one_line(first_line(error))}") from error


def _serve(demo: Interface, folder: UploadFolder, config: Config, **options: Any) -> Any:
    return demo.launch(
        server_name=config.host,
        server_port=config.port,
        auth=config.auth,
        theme=theme(),
        css_paths=[web_asset(f"{name}.css") for name in STYLES],
        head=head(),
        ssr_mode=False,
        run_history=False,
        enable_monitoring=False,
        share=False,
        show_error=False,
        # Otherwise Gradio gives up where the first page takes three seconds, with advice about proxies.
        _frontend=False,
        max_file_size=config.max_upload,
        # Each answer that a page shows while it is written may occupy a thread; the rest of the page needs some too.
        max_threads=2 * config.concurrency,
        app_kwargs={"lifespan": guarded_requests(demo, folder, config.max_upload)},
        # So many conversations are kept; then the oldest is dropped. Each holds the routing of its answers.
        state_session_capacity=config.sessions,
        footer_links=["api", "gradio", "settings"],
        **options,
    )


def head() -> str:
    """Our scripts, inlined into the page."""
    scripts = "".join(web_asset(f"{name}.js").read_text(encoding="utf-8") + "\n" for name in SCRIPTS)
    description = f'<meta name="description" content="{escape(LEAD)}">'
    return f"{description}<script>{scripts}</script>"


def theme() -> gr.themes.Base:
    """Calm greys, system fonts, one accent."""
    base_theme = gr.themes.Default(
        primary_hue="blue",
        neutral_hue="slate",
        font=["system-ui", "-apple-system", "Segoe UI", "sans-serif"],
        font_mono=["ui-monospace", "SFMono-Regular", "Consolas", "monospace"],
        radius_size="md",
    )
    # One shade darker than Gradio's own: white on it can be read by everyone.
    return base_theme.set(
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
        button_cancel_background_fill="#b42318",
        button_cancel_background_fill_hover="#912018",
        button_cancel_background_fill_dark="#b42318",
        button_cancel_background_fill_hover_dark="#912018",
        color_accent="*primary_700",
        block_info_text_color="*neutral_600",
    )
