# SPDX-License-Identifier: Apache-2.0
"""`python -m slim_core serve`: the app in the browser."""

from __future__ import annotations

from typing import Annotated

import typer

from .console import refuse, warn


LIMITS = "Limits"


def serve(
    base: Annotated[str | None, typer.Option(help="Base model: folder or Hub id. [default: the demo]")] = None,
    lora: Annotated[str | None, typer.Option(help="LoRA: folder or Hub id.")] = None,
    slim: Annotated[str | None, typer.Option(help="SLIM adapter: folder or Hub id.")] = None,
    adapters: Annotated[str | None, typer.Option(help="Folder whose folders visitors may choose as adapters.")] = None,
    revision: Annotated[str | None, typer.Option(help="Version of the base on the Hub.")] = None,
    load_4bit: Annotated[bool | None, typer.Option("--load-4bit/--no-load-4bit", help="Base in 4 bits.")] = None,
    load_8bit: Annotated[bool | None, typer.Option("--load-8bit/--no-load-8bit", help="Base in 8 bits.")] = None,
    models: Annotated[
        str | None, typer.Option(help="Bases that visitors may switch to, with commas; * is any Hub id.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, mps. [default: a GPU if there is one]")] = None,
    host: Annotated[str | None, typer.Option(help="Address; 0.0.0.0 for other machines. [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="[default: 7860]")] = None,
    auth_user: Annotated[str | None, typer.Option(help="Name to sign in with; SLIM_AUTH_PASSWORD is set too.")] = None,
    queue_size: Annotated[
        int | None, typer.Option(rich_help_panel=LIMITS, help="Most that wait. [default: 32]")
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option(rich_help_panel=LIMITS, help="Most requests open at once. [default: 16]")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(rich_help_panel=LIMITS, help="Longest answer in tokens. [default: 1024]")
    ] = None,
    max_prompts: Annotated[
        int | None, typer.Option(rich_help_panel=LIMITS, help="Most prompts of a visitor's list. [default: 50]")
    ] = None,
    max_upload: Annotated[
        int | None, typer.Option(rich_help_panel=LIMITS, help="Largest imported file in bytes. [default: 64000000]")
    ] = None,
    upload_space: Annotated[
        int | None,
        typer.Option(rich_help_panel=LIMITS, help="Bytes of all uploads that wait. [default: 1000000000]"),
    ] = None,
    upload_seconds: Annotated[
        int | None, typer.Option(rich_help_panel=LIMITS, help="How long an upload waits. [default: 1800]")
    ] = None,
    sessions: Annotated[
        int | None, typer.Option(rich_help_panel=LIMITS, help="Visitors whose conversations are kept. [default: 200]")
    ] = None,
    max_adapters: Annotated[
        int | None, typer.Option(rich_help_panel=LIMITS, help="Adapters of visitors held at once. [default: 16]")
    ] = None,
    adapter_memory: Annotated[
        int | None, typer.Option(rich_help_panel=LIMITS, help="Bytes for all of them. [default: 4000000000]")
    ] = None,
    visitor_memory: Annotated[
        int | None, typer.Option(rich_help_panel=LIMITS, help="Bytes for one visitor's. [default: 1000000000]")
    ] = None,
) -> None:
    """Open the app: one prompt, three answers side by side, and who answered which token.

    Every flag is an environment variable too (SLIM_BASE, SLIM_PORT, …); a flag goes before it. A password is taken
    from SLIM_AUTH_PASSWORD alone, for a command line can be read by everyone on the machine.
    """
    flags = dict(locals())
    from ..webui.config import Config, ConfigError
    from ..webui.ready import check_start

    try:
        config = Config.read(**flags)
        for warning in check_start(config):
            warn(warning)
    except ConfigError as error:
        refuse(error)
        raise typer.Exit(1) from None
    # Torch, transformers and Gradio take their time; what can be wrong without them is known by now.
    from ..inference import EngineError
    from ..webui.launch import launch, open_app

    try:
        launch(open_app(config), config)
    except (ConfigError, EngineError) as error:
        refuse(error)
