# SPDX-License-Identifier: Apache-2.0
"""Open WebUI in a process of its own, since it needs an environment of its own, in front of the demo's API."""

from __future__ import annotations

import os
import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from slim_core.inference import load_engine
from slim_core.paths import DEMO
from slim_core.serving.openai_api import standalone_api
from slim_core.serving.protocol import EngineService
from tests.serving.conftest import KEY, Server
from tests.waiting import PATIENCE, until


COMMAND = os.environ.get("SLIM_TEST_OPEN_WEBUI")
needs_open_webui = pytest.mark.skipif(
    not COMMAND, reason="needs Open WebUI: set SLIM_TEST_OPEN_WEBUI to the command open-webui of its environment"
)
DOCS = Path(__file__).resolve().parents[2] / "docs" / "api.md"
# Seconds until it answers; it imports torch, and makes a database.
START = 240
# Beside those that the docs name: nothing is fetched, nothing reported, and no other server looked for.
OFFLINE = {
    "OFFLINE_MODE": "true",
    "HF_HUB_OFFLINE": "1",
    "RAG_EMBEDDING_ENGINE": "openai",
    "ENABLE_OLLAMA_API": "false",
    "ANONYMIZED_TELEMETRY": "false",
    "DO_NOT_TRACK": "true",
    "WEBUI_SECRET_KEY": "a secret of the tests, which has to be long",
    "OMP_NUM_THREADS": "1",
}
MODELS = ("base", "lora", "slim")
Messages = list[dict[str, str]]


class OpenWebUI(NamedTuple):
    """Both servers.

    Attributes:
        api: the demo's.
        client: asks Open WebUI as its first user.
        token: of that user.
    """

    api: Server
    client: httpx.Client
    token: str

    def direct(self, model: str, messages: Messages) -> str:
        """The API's own greedy answer."""
        answer = self.api.client().chat.completions.create(model=model, messages=messages, temperature=0)
        return answer.choices[0].message.content


def documented() -> dict[str, str]:
    """The variables that the docs tell people to set."""
    (block,) = re.findall(r"^\*\*Open WebUI\*\*.*?^```ini\n(.*?)^```", DOCS.read_text(), re.M | re.S)
    return dict(line.split("=", 1) for line in block.splitlines())


@contextmanager
def running(folder: Path) -> Iterator[OpenWebUI]:
    """Both, started.

    Args:
        folder: an empty one, for the database and the log.
    """
    engine = load_engine(DEMO / "base", lora=DEMO / "lora", slim=DEMO / "slim", device="cpu")
    api = Server(standalone_api(EngineService(engine, 4, 64), KEY))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = documented() | {"OPENAI_API_BASE_URL": api.url, "OPENAI_API_KEY": KEY, "DATA_DIR": str(folder / "data")}
    # It also imports modules from the folder above the one where it starts.
    (folder / "start").mkdir()
    log = folder / "log"
    with log.open("w") as out:
        server = subprocess.Popen(
            [str(COMMAND), "serve", "--host", "127.0.0.1", "--port", str(port)],
            cwd=folder / "start",
            env=os.environ | OFFLINE | settings,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60 * PATIENCE) as client:

            def ready() -> bool:
                assert server.poll() is None, log.read_text()[-3000:]
                try:
                    return client.get("/health").is_success
                except httpx.TransportError:
                    return False

            until(ready, START)
            person = {"name": "Ann", "email": "ann@example.org", "password": "Never-used-1"}
            signed = client.post("/api/v1/auths/signup", json=person)
            assert signed.status_code == 200, signed.text
            token = signed.json()["token"]
            client.headers["Authorization"] = f"Bearer {token}"
            yield OpenWebUI(api, client, token)
    finally:
        server.terminate()
        server.wait(30 * PATIENCE)
        api.stop()
