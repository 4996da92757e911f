# SPDX-License-Identifier: Apache-2.0
"""HTTP as all APIs here use it: JSON is read within a limit, and errors have OpenAI's form."""

from __future__ import annotations

import hmac
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from ..outside.errors import megabytes, quoted
from .errors import ApiError


FAILED = "The server failed while it answered. Try again; if it happens again, look at the server's log."
# Connections beyond this are refused at once; each may hold a request that waits.
MOST_CONNECTIONS = 1000
# Bytes of a request.
MOST_BYTES = 4_000_000
# Halves of characters may be escaped in JSON, and two make a character.
HALF = re.compile(rb"\\u[dD][89a-fA-F]")


def new_api(origins: Sequence[str] = (), **options: Any) -> FastAPI:
    """An app whose errors have OpenAI's form. A page of documentation would load its scripts from elsewhere.

    Args:
        origins: of web pages whose scripts may call it from a browser; `*` is every page.
        options: of FastAPI.
    """
    api = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, **options)
    if origins:
        # Keys are sent in a header. Cookies, which browsers send by themselves, are not allowed.
        api.add_middleware(CORSMiddleware, allow_origins=origins, allow_methods=["GET", "POST"], allow_headers=["*"])

    @api.exception_handler(ApiError)
    async def report(request: Request, error: ApiError) -> JSONResponse:
        return _refusal(error)

    @api.exception_handler(HTTPException)
    async def report_address(request: Request, error: HTTPException) -> JSONResponse:
        place = f"{request.method} {request.url.path}"
        return _refusal(ApiError(error.status_code, f"{quoted(place, 200)} is not part of this API."))

    @api.exception_handler(Exception)
    async def report_failure(request: Request, error: Exception) -> JSONResponse:
        # The error itself goes to the log.
        return _refusal(ApiError(500, FAILED))

    return api


class Bounded:
    """An ASGI app that answers a limited number of requests at once, and refuses others in a sentence.

    Args:
        app: what answers.
        most: requests at once.
    """

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app, self._most, self._running = app, most, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # what lasts as long as the server
            await self._app(scope, receive, send)
            return
        if self._running >= self._most:
            sentence = (
                f"{self._most} requests are being answered, and no more can be taken: try again in a few seconds."
            )
            await _refusal(ApiError(503, sentence))(scope, receive, send)
            return
        self._running += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._running -= 1


def _refusal(error: ApiError) -> JSONResponse:
    soon = {"Retry-After": "2"}
    headers = {401: {"WWW-Authenticate": "Bearer"}, 429: soon, 503: soon}.get(error.status)
    return JSONResponse(error.body, error.status, headers)


def address(request: Request) -> str | None:
    """The client's address, by which clients take turns. Behind a proxy that is trusted, Uvicorn reads its headers."""
    return request.client.host if request.client else None


def key_check(key: str | None) -> Callable[[Request], None]:
    """A dependency that raises ApiError unless a request brings the key; None lets all pass."""

    def check(request: Request) -> None:
        kind, _, sent_key = request.headers.get("authorization", "").partition(" ")
        right = key is None or (
            kind.lower() == "bearer" and hmac.compare_digest(sent_key.strip().encode(), key.encode())
        )
        if not right:
            sentence = "The API key is missing or wrong: send the header Authorization: Bearer KEY."
            raise ApiError(401, sentence, code="invalid_api_key")

    return check


async def read_bytes(request: Request) -> bytes:
    """The request's body; raises ApiError if it is too large, or its sender leaves."""
    body = bytearray()
    try:
        async for piece in request.stream():
            body += piece
            if len(body) > MOST_BYTES:
                raise ApiError(
                    413, f"The request is larger than {megabytes(MOST_BYTES)}, the largest that is accepted."
                )
    except ClientDisconnect:
        raise ApiError(400, "The request ended before its body did.") from None
    return bytes(body)


async def read_json(request: Request) -> Any:
    """The request's body; raises ApiError if it is too large, not JSON, or has text that nobody could send on."""
    body = await read_bytes(request)
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        raise ApiError(400, "The body of the request is not JSON in UTF-8.") from None
    if HALF.search(body):
        try:
            json.dumps(content, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ApiError(400, "The request contains half a character: an escape such as \\ud83d alone.") from None
    return content


def event(content: dict[str, Any]) -> str:
    """One event of a stream."""
    return f"data: {json.dumps(content, ensure_ascii=False, separators=(',', ':'))}\n\n"


# What ends a stream.
LAST_EVENT = "data: [DONE]\n\n"
