# SPDX-License-Identifier: Apache-2.0
"""The API in front of several replicas of an engine. A replica that ends loses no request that had not begun."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any, NamedTuple

import anyio
from fastapi import Depends, FastAPI, Request
from fastapi.responses import Response, StreamingResponse

from .errors import ApiError
from .http import LAST_EVENT, address, event, key_check, new_api, read_bytes
from .places import Places


# How often a request is given to a replica: it might be what ends them.
TRIES = 3
# Seconds until the next try, in which it becomes known that a replica has ended.
PAUSE = 0.5
TO_REPLICA = ("content-type",)
LOST = "The replica that was writing this answer has ended, so the answer is incomplete: send the request again."
ALL_LOST = (
    f"{TRIES} replicas ended while they answered this request, one after the other: look at their logs before you "
    "send it again."
)
FULL = "All places are taken by requests that are running or queued. Try again in a few seconds."


class ReplicaLostError(Exception):
    """A replica ended before its response did."""


class Call(NamedTuple):
    """A request to a replica.

    Attributes:
        method: HTTP method.
        path: with its query.
        headers: those that matter.
        body: the whole body.
        model: the name of the model, or None.
        client: the client's address, or None.
    """

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    model: str | None
    client: str | None


class ResponseStart(NamedTuple):
    """How a replica's response begins: its status and its headers."""

    status: int
    headers: dict[str, str]


# A start, then pieces of the body.
Pieces = AsyncGenerator[ResponseStart | bytes, None]
# Gives a call to a replica. Raises ApiError if none can take it, and ReplicaLostError.
Send = Callable[[Call], Pieces]


def replicated_api(send: Send, places: int, key: str | None = None, origins: Sequence[str] = ()) -> FastAPI:
    """An ASGI app with `/v1` and `/health` whose requests are answered by replicas of `openai_api.standalone_api`.

    A request has begun when something of its answer was sent to the client. Until then, it goes to another replica if
    its own ends; an answer that is not streamed is sent when it is complete.

    Args:
        send: gives a call to a replica.
        places: how many requests are answered or wait at once; a quarter more for clients who have none.
        key: that clients must send as `Authorization: Bearer …`; None asks for none.
        origins: of web pages whose scripts may call it from a browser; `*` is every page.
    """
    api, free = new_api(origins), Places(places)

    @api.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @api.api_route("/v1/{path:path}", methods=["GET", "POST"], dependencies=[Depends(key_check(key))])
    async def forward(request: Request) -> Response:
        return await _response(_pieces(send, await _call(request), free))

    return api


async def _call(request: Request) -> Call:
    path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    headers = {name: request.headers[name] for name in TO_REPLICA if name in request.headers}
    body = await read_bytes(request)
    return Call(request.method, path, headers, body, _model(body), address(request))


def _model(body: bytes) -> str | None:
    """The model that a request names; what is wrong with it is for the replica to say."""
    try:
        model: Any = json.loads(body)["model"]
    except (ValueError, RecursionError, LookupError, TypeError):
        return None
    return model if isinstance(model, str) else None


async def _pieces(send: Send, call: Call, free: Places) -> Pieces:
    """The response of the first replica that does not end before it begins.

    Raises:
        ApiError: if there is no place, or one replica after the other ended.
        ReplicaLostError: if it ends after the response has begun.
    """
    if not free.take(call.client):
        raise ApiError(429, FULL, code="rate_limit_exceeded")
    try:
        for attempt in range(TRIES):
            await anyio.sleep(PAUSE if attempt else 0)
            begun = False
            try:
                async with aclosing(send(call)) as pieces:
                    start = await anext(pieces)
                    assert isinstance(start, ResponseStart)  # as `Pieces` says
                    first = [await anext(pieces, b"")] if _streams(start) else [piece async for piece in pieces]
                    begun = True
                    yield start
                    for piece in first:
                        yield piece
                    async for piece in pieces:
                        yield piece
                    return
            except ReplicaLostError:
                if begun:
                    raise
        raise ApiError(503, ALL_LOST)
    finally:
        free.give_back(call.client)


async def _response(pieces: Pieces) -> Response:
    start = await anext(pieces)
    assert isinstance(start, ResponseStart)
    if _streams(start):
        return StreamingResponse(_events(pieces), start.status, start.headers)
    async with aclosing(_bodies(pieces)) as bodies:
        return Response(b"".join([piece async for piece in bodies]), start.status, start.headers)


def _streams(start: ResponseStart) -> bool:
    return start.headers.get("content-type", "").startswith("text/event-stream")


async def _events(pieces: Pieces) -> AsyncGenerator[bytes, None]:
    try:
        async with aclosing(_bodies(pieces)) as bodies:
            async for piece in bodies:
                yield piece
    except ReplicaLostError:
        # The status has gone out long ago.
        yield event(ApiError(503, LOST).body).encode()
        yield LAST_EVENT.encode()


async def _bodies(pieces: Pieces) -> AsyncGenerator[bytes, None]:
    async with aclosing(pieces):
        async for piece in pieces:
            assert isinstance(piece, bytes)
            yield piece
