# SPDX-License-Identifier: Apache-2.0
"""`python -m slim_core gate-proxy`: SLIM's gate in front of a server that knows only LoRA."""

from __future__ import annotations

import socket
from typing import Annotated
from urllib.parse import urlsplit

import typer

from ..paths import DEMO
from .console import refuse, screen


UPSTREAM = "The server behind the gate"


def gate_proxy(
    upstream: Annotated[str, typer.Option(help="OpenAI-compatible API of the LoRA server: http://HOST:PORT/v1.")],
    base: Annotated[str | None, typer.Option(help="Base model: folder or Hub id. (default: the demo)")] = None,
    adapter: Annotated[
        str | None, typer.Option(help="SLIM adapter that judges: folder or Hub id. (default: the demo's)")
    ] = None,
    base_model: Annotated[
        str,
        typer.Option(rich_help_panel=UPSTREAM, help="That server's name for the base, which gets unfamiliar prompts."),
    ] = "base",
    lora_model: Annotated[
        str, typer.Option(rich_help_panel=UPSTREAM, help="That server's name for the exported LoRA.")
    ] = "lora",
    model: Annotated[
        str, typer.Option(help="Model name that clients send; requests for others are passed on unread.")
    ] = "slim",
    threshold: Annotated[
        float, typer.Option(min=0, max=1, help="Mean identity share from which a prompt goes to the base.")
    ] = 0.5,
    revision: Annotated[str | None, typer.Option(help="Revision of the base on the Hub.")] = None,
    load_4bit: Annotated[bool, typer.Option("--load-4bit", help="Load the base in 4 bits.")] = False,
    load_8bit: Annotated[bool, typer.Option("--load-8bit", help="Load the base in 8 bits.")] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, mps. (default: a GPU if there is one)")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 to let other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 7861,
    concurrency: Annotated[int, typer.Option(min=1, help="Maximum number of prompts judged or queued.")] = 16,
) -> None:
    """Judge each prompt with one forward, and let a LoRA server's base or its exported LoRA answer it.

    The server behind it needs the base and the adapter's static export (`adapter export`) as two models. Keys that
    clients send are passed on to it.
    """
    from ..extras import lacking

    for package in ("fastapi", "uvicorn"):
        if (missing := lacking(package, "The gate")) is not None:
            refuse(missing)
    if (wrong := _wrong(upstream, host, port)) is not None:
        refuse(wrong)
    from ..base.choice import demo_choice
    from ..inference import EngineError, load_engine
    from ..serving.gate import Gate
    from ..serving.gate_proxy import gate_proxy as proxy
    from ..serving.server import serve_app

    try:
        if base is None:
            demo = demo_choice(DEMO, "--base and --adapter")
            base, adapter = demo.base, adapter or demo.slim
        if adapter is None:
            raise EngineError("--adapter is missing: name the SLIM adapter that judges the prompts.")
        engine = load_engine(
            base, slim=adapter, revision=revision, device=device, four_bit=load_4bit, eight_bit=load_8bit
        )
    except EngineError as error:
        refuse(error)
    screen(soft_wrap=True).print(
        f"Model {model} at http://{host}:{port}/v1, answered by {base_model} or {lora_model} of {upstream}",
        highlight=False,
    )
    gate = Gate(engine, "slim", threshold, base_model, lora_model)
    serve_app(proxy(gate, model, upstream, concurrency), host, port)


def _wrong(upstream: str, host: str, port: int) -> str | None:
    """What is wrong with the addresses; None if they can be used."""
    try:
        parts = urlsplit(upstream)
        is_valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_valid = False
    if not is_valid or parts.query or parts.fragment:
        return f"--upstream is {upstream!r}; it must be an address such as http://127.0.0.1:8000/v1."
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        return (
            f"The gate cannot be served at {host}, port {port} ({error.strerror}); choose others with --host and "
            "--port."
        )
    return None
