# SPDX-License-Identifier: Apache-2.0
"""A request to an ASGI app in the same process, whose response comes piece by piece."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import unquote

from starlette.types import ASGIApp, Message

from .replicas import Call, Pieces, ResponseStart


async def respond(app: ASGIApp, call: Call) -> Pieces:
    """The response's start, then the pieces of its body as they come.

    Closing it tells the app that the client has left, and waits until the app has noticed.

    Args:
        app: an ASGI app.
        call: the request.
    """
    messages: asyncio.Queue[Message | None] = asyncio.Queue()
    request_messages = iter([{"type": "http.request", "body": call.body, "more_body": False}])
    client_left = asyncio.Event()

    async def receive() -> Message:
        if (message := next(request_messages, None)) is not None:
            return message
        await client_left.wait()
        return {"type": "http.disconnect"}

    async def run() -> None:
        try:
            await app(_scope(call), receive, messages.put)
        finally:
            messages.put_nowait(None)

    task = asyncio.create_task(run())
    more = True
    try:
        while more and (message := await messages.get()) is not None:
            if message["type"] == "http.response.start":
                headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in message["headers"]}
                yield ResponseStart(message["status"], headers)
            elif message["type"] == "http.response.body":
                if body := message.get("body"):
                    yield bytes(body)
                more = message.get("more_body", False)
        if more:
            # The app ended without a complete response: raise what went wrong.
            await task
    finally:
        client_left.set()
        await asyncio.wait([task])


def _scope(call: Call) -> dict[str, Any]:
    path, _, query = call.path.partition("?")
    return {
        "type": "http",
        # With this version of the specification, streaming responses notice when the client leaves.
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": call.method,
        "scheme": "http",
        "path": unquote(path),
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in call.headers.items()],
        "client": None if call.client is None else (call.client, 0),
        "server": None,
        "state": {},
    }
