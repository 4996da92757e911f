# SPDX-License-Identifier: Apache-2.0
"""`python -m slim_core serve`: the app in the browser, and answers for programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import refuse, screen, warn


if TYPE_CHECKING:
    from ..serving.protocol import EngineService
    from ..webui.config import Config


LIMITS = "Limits"


def serve(
    base: Annotated[str | None, typer.Option(help="Base model: folder or Hub id. (default: the demo)")] = None,
    lora: Annotated[str | None, typer.Option(help="LoRA: folder or Hub id.")] = None,
    slim: Annotated[str | None, typer.Option(help="SLIM adapter: folder or Hub id.")] = None,
    adapters: Annotated[
        str | None, typer.Option(help="Folder of adapters, one subfolder each, that visitors or programs may choose.")
    ] = None,
    data_dir: Annotated[
        str | None, typer.Option(help="Folder with data sets that visitors may evaluate on. (default: none)")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Revision of the base on the Hub.")] = None,
    load_4bit: Annotated[
        bool | None, typer.Option("--load-4bit/--no-load-4bit", help="Load the base in 4 bits.")
    ] = None,
    load_8bit: Annotated[
        bool | None, typer.Option("--load-8bit/--no-load-8bit", help="Load the base in 8 bits.")
    ] = None,
    models: Annotated[
        str | None, typer.Option(help="Bases that visitors may switch to, separated by commas; * allows any Hub id.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, mps. (default: a GPU if there is one)")] = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on; 0.0.0.0 to let other machines in. (default: 127.0.0.1)")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on. (default: 7860)")] = None,
    auth_user: Annotated[
        str | None, typer.Option(help="User name for signing in; set SLIM_AUTH_PASSWORD as well.")
    ] = None,
    api_only: Annotated[
        bool, typer.Option("--api-only", help="Serve the OpenAI-compatible API alone, without the page.")
    ] = False,
    api_origins: Annotated[
        str | None,
        typer.Option(
            help="Web pages that may call the API from a browser, where it is served alone: their origins, separated "
            "by commas; * allows all. (default: none)"
        ),
    ] = None,
    queue_size: Annotated[
        int | None, typer.Option(rich_help_panel=LIMITS, help="Maximum number of queued requests. (default: 128)")
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option(rich_help_panel=LIMITS, help="Maximum number of prompts running or queued. (default: 64)"),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(rich_help_panel=LIMITS, help="Maximum length of an answer, in tokens. (default: 1024)"),
    ] = None,
    max_prompts: Annotated[
        int | None,
        typer.Option(rich_help_panel=LIMITS, help="Maximum number of prompts in a visitor's list. (default: 50)"),
    ] = None,
    max_questions: Annotated[
        int | None,
        typer.Option(
            rich_help_panel=LIMITS,
            help="Maximum number of questions of each task in a visitor's evaluation. (default: 100)",
        ),
    ] = None,
    max_upload: Annotated[
        int | None,
        typer.Option(rich_help_panel=LIMITS, help="Maximum size of an uploaded file, in bytes. (default: 64000000)"),
    ] = None,
    upload_space: Annotated[
        int | None,
        typer.Option(
            rich_help_panel=LIMITS, help="Maximum size of all unused uploads, in bytes. (default: 1000000000)"
        ),
    ] = None,
    upload_seconds: Annotated[
        int | None,
        typer.Option(rich_help_panel=LIMITS, help="Seconds until an unused upload is deleted. (default: 1800)"),
    ] = None,
    sessions: Annotated[
        int | None,
        typer.Option(
            rich_help_panel=LIMITS, help="Maximum number of visitors whose conversations are kept. (default: 200)"
        ),
    ] = None,
    max_adapters: Annotated[
        int | None,
        typer.Option(rich_help_panel=LIMITS, help="Maximum number of visitors' adapters in memory. (default: 16)"),
    ] = None,
    adapter_memory: Annotated[
        int | None,
        typer.Option(
            rich_help_panel=LIMITS, help="Maximum memory for all visitors' adapters, in bytes. (default: 4000000000)"
        ),
    ] = None,
    visitor_memory: Annotated[
        int | None,
        typer.Option(
            rich_help_panel=LIMITS, help="Maximum memory for one visitor's adapters, in bytes. (default: 1000000000)"
        ),
    ] = None,
    cache_memory: Annotated[
        int | None,
        typer.Option(
            rich_help_panel=LIMITS,
            help="Maximum memory for keys and values kept for next turns, in bytes; 0 keeps none. "
            "(default: 500000000)",
        ),
    ] = None,
) -> None:
    """Open the app: one prompt, three answers side by side, and which expert handled which token.

    Programs find an OpenAI-compatible API at /v1, beside the page or alone. Alone, it also answers with the adapters
    in the folder --adapters, by the names of their subfolders.

    Every flag except --api-only is also an environment variable (SLIM_BASE, SLIM_PORT, …); a flag takes precedence.
    The password and the key of the API are read only from SLIM_AUTH_PASSWORD and SLIM_API_KEY, since everyone on the
    machine can read a command line.
    """
    flags = {name: value for name, value in locals().items() if name != "api_only"}
    from ..serving.memory import limit_arenas
    from ..webui.config import Config, ConfigError
    from ..webui.ready import check_start

    limit_arenas()

    try:
        config = Config.read(page=not api_only, **flags)
        for warning in check_start(config, page=not api_only):
            warn(warning)
    except ConfigError as error:
        refuse(error)
        raise typer.Exit(1) from None
    if api_only:
        _serve_api(config)
        return
    # Importing torch, transformers and Gradio is slow, so everything that can be checked without them was checked
    # first.
    from ..inference import EngineError
    from ..webui.launch import launch, open_app

    try:
        launch(open_app(config), config)
    except (ConfigError, EngineError) as error:
        refuse(error)


def api_service(config: Config) -> EngineService:
    """Load the base with its adapters, as the API alone answers with them.

    Raises:
        EngineError: if something cannot be loaded or does not fit.
    """
    from ..inference import open_base
    from ..paths import DEMO
    from ..serving.on_demand import AdaptersOnDemand
    from ..serving.protocol import EngineService
    from ..webui.state.choices import first_choice

    engine = open_base(first_choice(config, DEMO), config.device or None)
    engine.keep_at_most(config.cache_memory)
    if not config.adapters:
        return EngineService(engine, config.concurrency, config.max_new_tokens)
    memory = (config.max_adapters, config.adapter_memory)
    return AdaptersOnDemand(engine, Path(config.adapters), *memory, config.concurrency, config.max_new_tokens)


def _serve_api(config: Config) -> None:
    from ..inference import EngineError
    from ..serving.server import serve_alone

    try:
        service = api_service(config)
    except EngineError as error:
        refuse(error)
    screen().print(f"Models {', '.join(service.models)} at http://{config.host}:{config.port}/v1")
    serve_alone(service, config.api_key or None, config.origins, config.host, config.port)
