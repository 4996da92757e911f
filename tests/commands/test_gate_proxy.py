# SPDX-License-Identifier: Apache-2.0
"""`python -m slim_core gate-proxy`, up to where the server would start."""

import socket

import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from slim_core.cli import app
from slim_core.paths import DEMO
from slim_core.serving import server


@pytest.fixture
def served(monkeypatch):
    calls = []
    monkeypatch.setattr(server.uvicorn, "run", lambda api, **options: calls.append((api, options)))
    return calls


def run(*arguments):
    return CliRunner().invoke(app, ["gate-proxy", *map(str, arguments)])


def test_the_demo_judges_by_default(served):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    result = run("--upstream", "http://127.0.0.1:9/v1", "--port", port, "--lora-model", "export")
    assert result.exit_code == 0, result.output
    sentence = f"Model slim at http://127.0.0.1:{port}/v1, answered by base or export of http://127.0.0.1:9/v1"
    assert result.stdout == sentence + "\n"
    ((api, options),) = served
    assert (options["host"], options["port"]) == ("127.0.0.1", port)
    assert TestClient(api).get("/health").json() == {"status": "ok"}


TAKEN = "A PORT IN USE"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--upstream", "localhost:8000"], "--upstream is 'localhost:8000'; it must be an address such as"),
        (["--upstream", "http://[::1/v1"], "--upstream is 'http://[::1/v1'; it must be an address such as"),
        (["--upstream", "http://a/v1", "--port", TAKEN], "The gate cannot be served at 127.0.0.1, port"),
        (["--upstream", "http://a/v1", "--base", DEMO / "base"], "--adapter is missing: name the SLIM adapter"),
        (["--upstream", "http://a/v1", "--adapter", DEMO / "lora"], "It is a lora adapter, not slim."),
    ],
)
def test_what_is_wrong_is_one_sentence(arguments, sentence, served):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with_port = [taken.getsockname()[1] if each == TAKEN else each for each in arguments]
        # Where the test does not say otherwise, no port is in the way.
        result = run(*with_port, *([] if TAKEN in arguments else ["--port", _free()]))
    assert result.exit_code == 1 and not served
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ") and sentence in line


def _free() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]
