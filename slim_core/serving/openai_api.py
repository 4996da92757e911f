# SPDX-License-Identifier: Apache-2.0
"""OpenAI's protocol over HTTP: `/v1/models` and `/v1/chat/completions`. A model is a variant of the engine."""

from __future__ import annotations

import hmac
import json
import secrets
from collections.abc import AsyncGenerator, Generator, Iterator
from contextlib import aclosing
from typing import Any

import anyio
from anyio.to_thread import run_sync
from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from ..base.errors import EngineError
from ..inference.stops import Stops
from ..inference.types import Row, RowStep, Step
from ..outside.errors import megabytes, shown
from .errors import ApiError, of_validation
from .protocol import BusyError, Service
from .replies import Reply, model_entry
from .requests import ChatRequest


# Bytes of a request.
MOST_BYTES = 4_000_000
ChoiceStep = tuple[int, RowStep]
ChoiceSteps = AsyncGenerator[ChoiceStep, None]
FAILED = "The server failed while it answered. Try again; if it happens again, look into the server's log."


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
            raise _no_model(service, name)
        return model_entry(found, service.engine.info.name)

    @api.post("/chat/completions")
    async def chat(request: Request) -> Any:
        wanted = await _read(request)
        reply = Reply(wanted.model)
        await run_sync(_check, service, wanted)
        try:
            service.enter()
        except BusyError as error:
            raise ApiError(429, str(error), code="rate_limit_exceeded") from None
        steps = _steps(service, wanted)
        # What is wrong at once is told with its status, and what has begun gives its place back whatever comes.
        first = await anext(steps)
        if wanted.stream:
            return StreamingResponse(_stream(first, steps, wanted, reply), media_type="text/event-stream")
        return JSONResponse(await _whole(first, steps, reply, request))

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


def _no_model(service: Service, name: str) -> ApiError:
    known = ", ".join(variant.name for variant in service.variants)
    return ApiError(404, f"There is no model {shown(name)} here; there are {known}.", "model", "model_not_found")


async def _read(request: Request) -> ChatRequest:
    """The request's body; raises ApiError with what is wrong with it."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MOST_BYTES:
            raise ApiError(413, f"The request has more than {megabytes(MOST_BYTES)}; that is too much.")
    try:
        return ChatRequest.model_validate(json.loads(body))
    except ValidationError as error:
        raise of_validation(error) from None
    except (ValueError, RecursionError):
        raise ApiError(400, "The body of the request is not JSON.") from None


def _check(service: Service, wanted: ChatRequest) -> None:
    """Check a well-formed request; raises ApiError."""
    variant = next((variant for variant in service.variants if variant.name == wanted.model), None)
    if variant is None:
        raise _no_model(service, wanted.model)
    if wanted.slim_strength is not None and variant.strength is None:
        raise ApiError(400, f"{variant.name} has no gate, so slim_strength has no effect.", "slim_strength")
    tokens, most = wanted.wanted_tokens, service.max_new_tokens
    if tokens is not None and tokens > most:
        raise ApiError(400, f"An answer here has at most {most} tokens; {tokens} were asked for.", "max_tokens")
    try:
        length = service.engine.count_tokens([message.message for message in wanted.messages])
    except EngineError as error:
        raise ApiError(400, str(error), "messages") from None
    room = service.engine.info.context_length
    if length >= room:
        raise ApiError(
            400,
            f"The conversation has {length} tokens, but the model reads and writes at most {room}: shorten it.",
            "messages",
            "context_length_exceeded",
        )


def _choices(service: Service, wanted: ChatRequest, stops: Stops) -> list[Generator[Step, None, None]]:
    """An answer for each requested choice, each with its own random numbers."""
    messages = tuple(message.message for message in wanted.messages)
    row = Row(wanted.model, messages, strength=wanted.slim_strength)
    seed = secrets.randbits(62) if wanted.seed is None else wanted.seed
    tokens = wanted.wanted_tokens or service.max_new_tokens
    return [
        service.answer([row], wanted.sampling(tokens, (seed + choice) % 2**63), stops)
        for choice in range(wanted.choices)
    ]


async def _steps(service: Service, wanted: ChatRequest) -> ChoiceSteps:
    """The index and the state of each choice as it comes. It has a place, and gives it back.

    Raises:
        ApiError: if the model fails.
    """
    stops = Stops(1)
    answers = _choices(service, wanted, stops)
    try:
        for index, answer in enumerate(answers):
            while (step := await run_sync(next, answer, None, abandon_on_cancel=False)) is not None:
                row = step.rows[0]
                if row.finish_reason == "error":
                    raise ApiError(500, row.error or FAILED)
                yield index, row
    except EngineError as error:
        raise ApiError(500, str(error)) from None
    finally:
        # The client may have left; the model must be free all the same.
        stops.stop_all()
        with anyio.CancelScope(shield=True):
            for answer in answers:
                await run_sync(answer.close)
        service.leave()


async def _whole(first: ChoiceStep, steps: ChoiceSteps, reply: Reply, request: Request) -> dict[str, Any]:
    index, row = first
    rows = {index: row}
    async with aclosing(steps):
        async for index, row in steps:
            rows[index] = row
            if await request.is_disconnected():
                break
    return reply.whole(list(rows.values()))


async def _stream(
    first: ChoiceStep, steps: ChoiceSteps, wanted: ChatRequest, reply: Reply
) -> AsyncGenerator[str, None]:
    ended: list[RowStep] = []
    sent: dict[int, int] = {}

    def pieces(index: int, row: RowStep) -> Iterator[str]:
        if index not in sent:
            sent[index] = 0
            yield _event(reply.piece(index, {"role": "assistant", "content": ""}))
        more = row.text[sent[index] :]
        sent[index] = len(row.text)
        if more:
            yield _event(reply.piece(index, {"content": more}))
        if row.state == "done":
            ended.append(row)
            yield _event(reply.piece(index, {}, row))

    try:
        async with aclosing(steps):
            for piece in pieces(*first):
                yield piece
            async for index, row in steps:
                for piece in pieces(index, row):
                    yield piece
    except ApiError as error:
        # The status has gone out long ago.
        yield _event(error.body)
    else:
        if wanted.usage_at_end:
            yield _event(reply.last(ended))
    yield "data: [DONE]\n\n"


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False, separators=(',', ':'))}\n\n"
