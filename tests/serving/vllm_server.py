# SPDX-License-Identifier: Apache-2.0
"""vLLM's server in a process of its own, since it needs an environment of its own."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import openai
import pytest

from slim_core.paths import DEMO
from tests.waiting import PATIENCE, until


PYTHON = os.environ.get("SLIM_TEST_VLLM")
needs_vllm = pytest.mark.skipif(not PYTHON, reason="needs vLLM: set SLIM_TEST_VLLM to the Python that has it")
# Seconds until it answers; it starts three processes that import torch.
START = 240
# One thread, so that it leaves the other cores alone, and a small key-value cache, in GiB.
SETTINGS = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}


@contextmanager
def serving(loras: dict[str, Path], log: Path, *options: str, path: Path | None = None) -> Iterator[str]:
    """The URL of the API of a server with the demo's base and some LoRAs.

    Args:
        loras: folders by name.
        log: where the server's output goes.
        options: more of the server's options.
        path: where a plugin is; without it, one that was installed is not used.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(PYTHON), "-m", "vllm.entrypoints.openai.api_server", "--model", str(DEMO / "base")]
    command += ["--served-model-name", "base", "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
    command += ["--max-model-len", "512", "--enforce-eager", "--enable-lora", "--max-loras", "3", *options]
    command += ["--lora-modules", *(f"{name}={folder}" for name, folder in loras.items())]
    url = f"http://127.0.0.1:{port}/v1"
    client = openai.OpenAI(base_url=url, api_key="-", max_retries=0)

    def ready() -> bool:
        assert server.poll() is None, log.read_text()[-3000:]
        try:
            return {model.id for model in client.models.list()} == {"base", *loras}
        except openai.APIConnectionError:
            return False

    environment = os.environ | SETTINGS | ({"VLLM_PLUGINS": ""} if path is None else {"PYTHONPATH": str(path)})
    with log.open("w") as out:
        server = subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT)
    try:
        until(ready, START)
        yield url
    finally:
        server.terminate()
        server.wait(30 * PATIENCE)


def token_ids(url: str, model: str, messages: list[dict[str, str]], longest: int, **options: bool) -> tuple[int, ...]:
    """A greedy answer; without its end, which vLLM counts as one of its tokens."""
    choice = (
        openai.OpenAI(base_url=url, api_key="-")
        .chat.completions.create(
            model=model,
            messages=messages,
            max_tokens=longest,
            temperature=0,
            extra_body={"return_token_ids": True} | options,
        )
        .choices[0]
    )
    return tuple(choice.token_ids[:-1] if choice.finish_reason == "stop" else choice.token_ids)
