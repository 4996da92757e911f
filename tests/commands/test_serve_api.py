# SPDX-License-Identifier: Apache-2.0
"""`python -m slim_core serve --api-only`, up to where the server would start."""

import shutil
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


def run(*arguments, **environment):
    return CliRunner().invoke(app, ["serve", "--api-only", *arguments], env=environment)


def test_the_demo_is_served_to_programs_alone(served):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    result = run(
        "--port",
        str(port),
        "--max-new-tokens",
        "50",
        "--api-origins",
        "https://chat.example.org, *",
        SLIM_API_KEY="a key",
    )
    assert result.exit_code == 0, result.output
    assert f"Models base, lora, slim at http://127.0.0.1:{port}/v1" in result.stdout
    ((api, options),) = served
    assert (options["host"], options["port"]) == ("127.0.0.1", port)
    client = TestClient(api)
    assert client.get("/health").json() == {"status": "ok"}
    refused = client.get("/v1/models", headers={"Origin": "https://chat.example.org"})
    assert refused.status_code == 401 and refused.headers["access-control-allow-origin"] == "*"
    question = {"model": "slim", "temperature": 0, "messages": [{"role": "user", "content": "What is 7 + 8?"}]}
    response = client.post("/v1/chat/completions", json=question, headers={"Authorization": "Bearer a key"})
    assert "15" in response.json()["choices"][0]["message"]["content"]
    # The page is not there.
    assert client.get("/").status_code == 404


def test_a_folder_of_adapters_is_served_by_name(served, tmp_path):
    shutil.copytree(DEMO / "slim", tmp_path / "ours")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    result = run("--port", str(port), "--adapters", str(tmp_path), "--max-adapters", "1")
    assert "Models base, lora, slim, ours at" in result.stdout
    client = TestClient(served[0][0])

    def answer(model: str) -> str:
        question = {"model": model, "temperature": 0, "messages": [{"role": "user", "content": "What is 7 + 8?"}]}
        return client.post("/v1/chat/completions", json=question).json()["choices"][0]["message"]["content"]

    assert answer("ours") == answer("slim")


def test_what_is_wrong_is_one_sentence(served):
    result = run("--lora", "somewhere")
    assert result.exit_code == 1 and result.stderr.strip() == "Error: An adapter needs its base model: set SLIM_BASE."
    assert not served
