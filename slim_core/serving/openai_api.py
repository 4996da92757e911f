# SPDX-License-Identifier: Apache-2.0
"""OpenAI's protocol over HTTP: models, chat completions and completions. A model is a variant of the engine."""

from __future__ import annotations

import hmac
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, TypeVar

from anyio.to_thread import run_sync
from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from ..outside.errors import megabytes, shown
from . import answers
from .errors import ApiError, of_validation
from .protocol import BusyError, Service
from .replies import ChatReply, CompletionReply, Reply, model_entry
from .requests import ChatRequest, CompletionRequest


# Bytes of a request.
MOST_BYTES = 4_000_000
Wanted = TypeVar("Wanted", ChatRequest, CompletionRequest)


def openai_api(service: Service, key: str | None = None, closed: str | None = None) -> FastAPI:
    """An ASGI app to be mounted at `/v1`, or served by itself with `alone`.

    Args:
        service: who answers.
        key: that clients must send as `Authorization: Bearer …`; None asks for none.
        closed: why nobody is answered, whatever key they send; None if they are.
    """

    def check_key(request: Request) -> None:
        if closed is not None:
            raise ApiError(401, closed, code="invalid_api_key")
        if key is not None and not _has_key(request, key):
            sentence = "The API key is missing or wrong: send the header Authorization: Bearer KEY."
            raise ApiError(401, sentence, code="invalid_api_key")

    # A page of documentation would load its scripts from elsewhere.
    api = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, dependencies=[Depends(check_key)])

    @api.exception_handler(ApiError)
    async def tell(request: Request, error: ApiError) -> JSONResponse:
        return _refusal(error)

    @api.exception_handler(HTTPException)
    async def tell_of_address(request: Request, error: HTTPException) -> JSONResponse:
        place = f"{request.method} {request.url.path}"
        return _refusal(ApiError(error.status_code, f"{shown(place, 200)} is not part of this API."))

    @api.get("/models")
    async def models() -> dict[str, Any]:
        name = service.engine.info.name
        return {"object": "list", "data": [model_entry(variant, name) for variant in service.variants]}

    @api.get("/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        found = next((variant for variant in service.variants if variant.name == name), None)
        if found is None:
            raise answers.no_model(service, name)
        return model_entry(found, service.engine.info.name)

    @api.post("/chat/completions")
    async def chat(request: Request) -> Any:
        wanted = await _read(request, ChatRequest)
        return await _answer(service, wanted, ChatReply(wanted, service.engine.token_texts), request)

    @api.post("/completions")
    async def complete(request: Request) -> Any:
        wanted = await _read(request, CompletionRequest)
        return await _answer(service, wanted, CompletionReply(wanted, service.engine.token_texts), request)

    return api


def alone(service: Service, key: str | None = None) -> FastAPI:
    """The API as a separate server, with `/health`."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    app.mount("/v1", openai_api(service, key))
    return app


def _has_key(request: Request, key: str) -> bool:
    kind, _, given = request.headers.get("authorization", "").partition(" ")
    return kind.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), key.encode())


def _refusal(error: ApiError) -> JSONResponse:
    headers = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "2"}}.get(error.status)
    return JSONResponse(error.body, error.status, headers)


async def _read(request: Request, kind: type[Wanted]) -> Wanted:
    """The request's body; raises ApiError with what is wrong with it."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MOST_BYTES:
            raise ApiError(413, f"The request has more than {megabytes(MOST_BYTES)}; that is too much.")
    try:
        return kind.model_validate(json.loads(body))
    except ValidationError as error:
        raise of_validation(error) from None
    except (ValueError, RecursionError):
        raise ApiError(400, "The body of the request is not JSON.") from None


async def _answer(service: Service, wanted: answers.Request, reply: Reply, request: Request) -> Response:
    """Answer a well-formed request, whole or as a stream."""
    await run_sync(answers.check, service, wanted)
    try:
        service.enter()
    except BusyError as error:
        raise ApiError(429, str(error), code="rate_limit_exceeded") from None
    steps = answers.steps_of(service, wanted)
    # What is wrong at once is told with its status, and what has begun gives its place back whatever comes.
    first = await anext(steps)
    if wanted.stream:
        events = _stream(first, steps, reply, wanted.usage_at_end)
        return StreamingResponse(events, media_type="text/event-stream")
    return JSONResponse(await _whole(first, steps, reply, request))


async def _whole(
    first: answers.ChoiceStep, steps: answers.ChoiceSteps, reply: Reply, request: Request
) -> dict[str, Any]:
    rows = dict([first])
    async with aclosing(steps):
        async for index, row in steps:
            rows[index] = row
            if await request.is_disconnected():
                break
    return reply.whole(rows)


async def _stream(
    first: answers.ChoiceStep, steps: answers.ChoiceSteps, reply: Reply, usage: bool
) -> AsyncGenerator[str, None]:
    rows = dict([first])
    try:
        async with aclosing(steps):
            for piece in reply.pieces(*first):
                yield _event(piece)
            async for index, row in steps:
                rows[index] = row
                for piece in reply.pieces(index, row):
                    yield _event(piece)
    except ApiError as error:
        # The status has gone out long ago.
        yield _event(error.body)
    else:
        if usage:
            yield _event(reply.last(rows))
    yield "data: [DONE]\n\n"


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False, separators=(',', ':'))}\n\n"
