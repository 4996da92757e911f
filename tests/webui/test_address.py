# SPDX-License-Identifier: Apache-2.0
"""Where the app is served: an address that cannot be had is a sentence."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from slim_core.webui.backend import Backend
from slim_core.webui.config import Config, ConfigError
from slim_core.webui.launch import launch
from slim_core.webui.layout import build
from tests.ui.conftest import free_port
from tests.ui.scripted import RESULTS, ScriptedEngine


ROOT = Path(__file__).parents[2]


def test_a_port_that_is_taken_and_a_host_that_is_not_here_are_sentences():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"cannot be served at 127.0.0.1, port {port} \(.+in use\); choose"):
            launch(None, Config(port=port))
    with pytest.raises(ConfigError, match=r"cannot be served at no\.such\.host\.invalid, port 7860"):
        launch(None, Config(host="no.such.host.invalid"))


@pytest.mark.parametrize("command", [["app.py"], ["-m", "slim_core", "serve"]])
def test_they_are_one_line_however_the_app_is_started(command):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        environment = os.environ | {"SLIM_PORT": str(taken.getsockname()[1])}
        result = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "Error: The app cannot be served at 127.0.0.1" in result.stderr


def test_a_machine_that_takes_long_for_the_first_page_serves_it(monkeypatch):
    # Gradio asks its own server for the page, and waits three seconds.
    monkeypatch.setattr("gradio.networking.url_ok", lambda url: False)
    config = Config(port=free_port())
    demo = build(Backend(ScriptedEngine()), config, RESULTS)
    _, url, _ = launch(demo, config, prevent_thread_lock=True, quiet=True)
    try:
        assert httpx.get(url, timeout=60).status_code == 200
    finally:
        demo.close(verbose=False)
