# SPDX-License-Identifier: Apache-2.0
"""OpenAI's protocol over HTTP: models, chat completions and completions. A model is a variant of the engine."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import ValidationError

from . import answers
from .errors import ApiError, of_validation
from .http import LAST_EVENT, address, event, key_check, new_api, read_json
from .protocol import Service
from .replies import ChatReply, CompletionReply, Reply, model_entry
from .requests import ChatRequest, CompletionRequest


Parsed = TypeVar("Parsed", ChatRequest, CompletionRequest)


def openai_api(service: Service, key: str | None = None, closed: str | None = None) -> FastAPI:
    """An ASGI app to be mounted at `/v1`, or served by itself with `standalone_api`.

    Args:
        service: the engine that answers, with its places.
        key: that clients must send as `Authorization: Bearer …`; None asks for none.
        closed: why nobody is answered, whatever key they send; None if they are.
    """

    def refuse_if_closed() -> None:
        if closed is not None:
            raise ApiError(401, closed, code="invalid_api_key")

    api = new_api(dependencies=[Depends(refuse_if_closed), Depends(key_check(key))])

    @api.get("/models")
    async def models() -> dict[str, Any]:
        base = service.engine.info.name
        return {"object": "list", "data": [model_entry(*model, base) for model in service.models.items()]}

    @api.get("/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        words = service.models.get(name)
        if words is None:
            raise answers.no_model(service, name)
        return model_entry(name, words, service.engine.info.name)

    @api.post("/chat/completions")
    async def chat(request: Request) -> Any:
        parsed = await _read(request, ChatRequest)
        return await _answer(service, parsed, ChatReply(parsed, service.engine.token_texts), request)

    @api.post("/completions")
    async def complete(request: Request) -> Any:
        parsed = await _read(request, CompletionRequest)
        return await _answer(service, parsed, CompletionReply(parsed, service.engine.token_texts), request)

    return api


def standalone_api(service: Service, key: str | None = None, origins: Sequence[str] = ()) -> FastAPI:
    """The API as a separate server, with `/health`.

    Args:
        service: the engine that answers, with its places.
        key: that clients must send; None asks for none.
        origins: of web pages whose scripts may call it from a browser; `*` is every page.
    """
    app = new_api(origins)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    app.mount("/v1", openai_api(service, key))
    return app


async def _read(request: Request, kind: type[Parsed]) -> Parsed:
    """A well-formed request; raises ApiError with what is wrong with it."""
    try:
        return kind.model_validate(await read_json(request))
    except ValidationError as error:
        raise of_validation(error) from None


async def _answer(service: Service, parsed: answers.GenerationRequest, reply: Reply, request: Request) -> Response:
    """Answer a well-formed request, whole or as a stream."""
    steps = answers.steps_of(service, parsed, address(request))
    # An error before the answer begins gets a status of its own. An answer that has begun gives its place back
    # whatever happens.
    first = await anext(steps)
    if parsed.stream:
        events = _stream(first, steps, reply, parsed.usage_at_end)
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
                yield event(piece)
            async for index, row in steps:
                rows[index] = row
                for piece in reply.pieces(index, row):
                    yield event(piece)
    except ApiError as error:
        # The status has gone out long ago.
        yield event(error.body)
    else:
        if usage:
            yield event(reply.last(rows))
    yield LAST_EVENT
