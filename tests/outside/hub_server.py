# SPDX-License-Identifier: Apache-2.0
"""A Hub on this machine, as far as adapters are fetched from one: it answers well, or badly in a chosen way."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


COMMIT = "0123456789abcdef0123456789abcdef01234567"
API = "/api/models/"


@dataclass
class Hub:
    """What the server has, how it misbehaves, and what it was asked.

    Attributes:
        files: contents by name, of every repository but those that are missing.
        way: how it misbehaves; "" for well.
        asked: (method, path, headers) of each request.
    """

    files: dict[str, bytes]
    way: str = ""
    asked: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    cuts: int = 1
    url: str = ""
    ended: threading.Event = field(default_factory=threading.Event)

    def requests(self, method: str) -> list[str]:
        return [path for asked, path, _ in self.asked if asked == method]


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.ended.set()
        server.shutdown()
        server.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append((self.command, path, {k.lower(): v for k, v in self.headers.items()}))
        if self.hub.way == "silent":
            self.hub.ended.wait(30)
            return
        if path.startswith(API):
            self._info(path.removeprefix(API))
        else:
            self._file(path)

    def _info(self, path: str) -> None:
        repository = path.partition("/revision/")[0]
        way = self.hub.way
        if way in ("missing", "private"):
            self._error(401, "RepoNotFound")
        elif way == "no revision":
            self._error(404, "RevisionNotFound")
        elif way == "broken":
            self._error(500, "")
        elif way == "busy":
            self._error(429, "")
        elif way == "renamed" and repository == "old/name":
            self._send(307, b"", {"Location": f"{API}new/name"})
        else:
            sha = None if way == "no commit" else COMMIT
            files = [{"rfilename": name, "size": len(data)} for name, data in self.hub.files.items()]
            info = {"id": repository, "sha": sha, "_id": "1", "siblings": files}
            self._send(200, json.dumps(info).encode(), {})

    def _file(self, path: str) -> None:
        way, name = self.hub.way, path.rpartition("/")[2]
        if way == "gated":
            return self._error(403, "GatedRepo")
        if way == "file redirected" and path.startswith("/me/") and name.endswith("safetensors"):
            return self._send(307, b"", {"Location": path.replace("/me/", "/evil/")})
        if way == "resolve cache" and path.startswith("/me/"):
            return self._send(307, b"", {"Location": f"/api/resolve-cache/models{path}", **self._describing(name)})
        if way == "store" and path.startswith("/me/") and name.endswith("safetensors"):
            described = self._describing(name)
            described |= {"X-Linked-Size": described["size"], "X-Linked-ETag": described["ETag"]}
            store = self.hub.url.replace("127.0.0.1", "localhost")
            return self._send(302, b"", {"Location": f"{store}/cdn/{name}", **described})
        data = self.hub.files.get(name)
        if data is None:
            return self._error(404, "EntryNotFound")
        return self._content(name, data)

    def _describing(self, name: str) -> dict[str, str]:
        data = self.hub.files[name]
        commit = "f" * 40 if self.hub.way == "other commit" else COMMIT
        digest = hashlib.sha256(data if self.hub.way != "damaged" else b"other").hexdigest()
        described = {"X-Repo-Commit": commit, "ETag": f'"{digest}"', "size": str(len(data))}
        if self.hub.way == "xet" and name.endswith("safetensors"):
            described |= {"X-Xet-Hash": digest, "X-Xet-Refresh-Route": f"{self.hub.url}/xet-token"}
        return described

    def _content(self, name: str, data: bytes) -> None:
        headers = self._describing(name)
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        status = 206 if start else 200
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        large = name.endswith("safetensors")
        if self.command == "HEAD":
            stated = {"huge": 10**12, "no size": None, "zero": 0}.get(self.hub.way, len(data)) if large else len(data)
            return self._send(200, b"", headers, stated)
        if large and self.hub.way == "wrong size":
            return self._send(200, data[:-9], headers)
        if large and self.hub.way == "more":
            return self._send(200, data + b"x" * 64, headers)
        if large and self.hub.way == "trickle":
            return self._trickle(data, headers)
        if large and self.hub.way in ("cut", "cut for good") and (self.hub.cuts or self.hub.way == "cut for good"):
            self.hub.cuts -= 1
            half = start or len(data) // 2
            self._send(status, data[start:half], headers, len(data) - start)
            self.close_connection = True
            return None
        return self._send(status, data[start:], headers)

    def _trickle(self, data: bytes, headers: dict[str, str]) -> None:
        self._send(200, b"", headers, len(data))
        for byte in data:
            try:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
            except OSError:
                return
            if self.hub.ended.wait(0.05):
                self.close_connection = True
                return

    def _error(self, status: int, code: str) -> None:
        self._send(status, b"", {"X-Error-Code": code} if code else {})

    def _send(self, status: int, body: bytes, headers: dict[str, str], length: int | None = -1) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if length is not None:
            self.send_header("Content-Length", str(len(body) if length == -1 else length))
        else:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        self.wfile.write(body)
