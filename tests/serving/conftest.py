# SPDX-License-Identifier: Apache-2.0
"""A server on this machine, and OpenAI's own client."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import openai
import pytest
import uvicorn
from fastapi import FastAPI

from slim_core.serving.openai_api import standalone_api
from slim_core.serving.protocol import EngineService
from slim_core.serving.server import OPTIONS
from tests.inference.conftest import engine as real_engine  # noqa: F401
from tests.inference.conftest import folders  # noqa: F401
from tests.ui.scripted import ScriptedEngine
from tests.waiting import PATIENCE, until


KEY = "a key of ours"


class Server:
    """Serves an app until it is stopped.

    Attributes:
        url: where the API is.
    """

    def __init__(self, app: FastAPI) -> None:
        self._server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, **OPTIONS))
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        until(lambda: self._server.started)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/v1"

    def client(self, key: str = KEY) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url, api_key=key, max_retries=0, timeout=30 * PATIENCE)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(10 * PATIENCE)


@pytest.fixture
def serve_app() -> Iterator[Callable[[FastAPI], Server]]:
    """Starts servers of apps, which end with the test."""
    running = []

    def start(app: FastAPI) -> Server:
        running.append(Server(app))
        return running[-1]

    yield start
    for server in reversed(running):
        server.stop()


@pytest.fixture
def serve(serve_app) -> Callable[..., Server]:
    """Starts servers of engines."""

    def start(engine, places: int = 4, max_new_tokens: int = 64, key: str | None = None) -> Server:
        return serve_app(standalone_api(EngineService(engine, places, max_new_tokens), key))

    return start


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine()
