# SPDX-License-Identifier: Apache-2.0
"""A real server in a process of its own, with its log in a file, and requests that no library would send."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.waiting import until


ROOT = Path(__file__).parents[3]
JSON = {"Content-Type": "application/json"}


class Server:
    """A running app.

    Args:
        folder: for its log and its uploads.
        command: after `python`; `{port}` stands for the port.
        started: what the log says once it is served.
    """

    def __init__(self, folder: Path, *command: str, started: str = "Running on local URL") -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port = listener.getsockname()[1]
        self.log_file, self.temporary = folder / "log.txt", folder / "gradio"
        environment = os.environ | {"GRADIO_TEMP_DIR": str(self.temporary), "SLIM_PORT": str(self.port)}
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *(part.format(port=self.port) for part in command)],
                cwd=ROOT,
                env=environment | {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        until(lambda: self.process.poll() is not None or started in self.log, 500)
        assert self.process.poll() is None, self.log

    @property
    def log(self) -> str:
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> tuple[int, str]:
        """The status and the text of an answer. What is no bytes is sent as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        if body is not None and not isinstance(body, bytes):
            body, headers = json.dumps(body).encode(), JSON | (headers or {})
        try:
            # Where it is refused before all of it was sent, the answer is there.
            with suppress(BrokenPipeError, ConnectionResetError):
                connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read().decode("utf-8", "replace")
        finally:
            connection.close()

    def answers(self, path: str) -> bool:
        """Whether it answers a GET with success."""
        try:
            return self.ask("GET", path)[0] == 200
        except OSError:
            return False

    def raw(self, data: bytes, wait: float = 60, leave: bool = False) -> str:
        """What comes back for these bytes, until the server closes the connection or the client leaves."""
        received = b""
        with socket.create_connection(("127.0.0.1", self.port), timeout=wait) as connection:
            connection.sendall(data)
            if leave:
                time.sleep(0.5)  # nothing tells when the server has read them
                return ""
            with suppress(TimeoutError, ConnectionResetError):
                while piece := connection.recv(65536):
                    received += piece
        return received.decode("latin-1")

    def call(self, name: str, body: Any) -> tuple[int, str]:
        """POST to a function, then all that its event says."""
        status, text = self.ask("POST", f"/gradio_api/call/{name}", body)
        if status != 200:
            return status, text
        return self.ask("GET", f"/gradio_api/call/{name}/{json.loads(text)['event_id']}")

    def join(self, body: dict[str, Any]) -> tuple[int, str]:
        """Join the queue as a page does, and all that it says."""
        status, text = self.ask("POST", "/gradio_api/queue/join", body)
        if status != 200:
            return status, text
        return self.ask("GET", f"/gradio_api/queue/data?session_hash={body['session_hash']}")

    def upload(self, *files: tuple[str, bytes], query: str = "") -> tuple[int, str]:
        """Upload files as the page does."""
        body = b"".join(
            b'--xx\r\nContent-Disposition: form-data; name="files"; filename="'
            + name.encode()
            + b'"\r\nContent-Type: application/octet-stream\r\n\r\n'
            + data
            + b"\r\n"
            for name, data in files
        )
        headers = {"Content-Type": "multipart/form-data; boundary=xx"}
        return self.ask("POST", f"/gradio_api/upload{query}", body + b"--xx--\r\n", headers)
