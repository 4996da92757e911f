# SPDX-License-Identifier: Apache-2.0
"""The gate as a proxy that speaks OpenAI's protocol, in front of a server that does too."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import httpx
from anyio.to_thread import run_sync
from fastapi import FastAPI, Request
from fastapi.responses import Response, StreamingResponse

from ..outside.errors import first_line, quoted
from .errors import ApiError
from .gate import Gate, Judged
from .http import LAST_EVENT, address, event, new_api, read_json
from .places import Places


# All other headers of a request or a response concern one connection and are not passed on.
TO_UPSTREAM = ("accept", "authorization", "openai-organization", "openai-project", "user-agent")
TO_CLIENT = ("content-type", "retry-after", "www-authenticate", "x-request-id")
# An answer may take any amount of time, opening a connection may not.
TIMEOUT = httpx.Timeout(None, connect=10)
# Idle connections are closed before servers usually close them.
LIMITS = httpx.Limits(max_connections=None, keepalive_expiry=2)


def gate_proxy(gate: Gate, model: str, upstream: str, places: int) -> FastAPI:
    """An app with `/v1/models`, `/v1/chat/completions`, `/v1/completions` and `/health`.

    A request for `model` goes to one of the gate's two models, and its response says to which in `x-slim-model`, and
    the share past LoRA in `x-slim-identity`. Requests for other models go on unread. Keys are the upstream's.

    Args:
        gate: who judges.
        model: the name of what is judged.
        upstream: where the API behind this one is, such as `http://127.0.0.1:8000/v1`.
        places: how many prompts are judged or wait for it at once; a quarter more for clients who have none.
    """
    client = httpx.AsyncClient(base_url=upstream.rstrip("/") + "/", timeout=TIMEOUT, limits=LIMITS)
    free = Places(places)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
        async with client:
            yield

    api = new_api(lifespan=lifespan)

    async def send(request: Request, path: str, body: Any = None) -> httpx.Response:
        headers = {name: request.headers[name] for name in TO_UPSTREAM if name in request.headers}
        if (client_address := address(request)) is not None:
            headers["x-forwarded-for"] = client_address
        sent = client.build_request(request.method, path, json=body, headers=headers | {"accept-encoding": "identity"})
        try:
            return await client.send(sent, stream=True)
        except httpx.TransportError as error:
            raise _unreachable(upstream, error) from None

    async def judged(body: dict[str, Any], visitor: str | None) -> Judged:
        if not free.take(visitor):
            sentence = f"{places} prompts are being judged, and no more can be taken. Try again in a few seconds."
            raise ApiError(429, sentence, code="rate_limit_exceeded")
        try:
            return await run_sync(gate.judge, body, visitor)
        finally:
            free.give_back(visitor)

    async def forward(request: Request, path: str) -> Response:
        body = await read_json(request)
        if not isinstance(body, dict):
            raise ApiError(400, "The request must be a JSON object.")
        verdict = None
        if body.get("model") == model:
            verdict = await judged(body, address(request))
            body = body | {"model": verdict.model}
        return await _passed_on(await send(request, path, body), upstream, verdict)

    @api.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    async def listed(request: Request) -> Response | dict[str, Any]:
        response = await _passed_on(await send(request, "models"), upstream, None)
        if response.status_code != 200:
            return response
        try:
            content = json.loads(bytes(response.body))
            return content | {"data": [_entry(model), *(entry | {} for entry in content["data"])]}
        except (ValueError, TypeError, KeyError):
            raise ApiError(502, f"The list of models from {upstream} is not in OpenAI's format.") from None

    @api.get("/v1/models")
    async def models(request: Request) -> Any:
        return await listed(request)

    @api.get("/v1/models/{name:path}")
    async def one_model(name: str, request: Request) -> Any:
        listing = await listed(request)
        if isinstance(listing, Response):
            return listing
        entry = next((entry for entry in listing["data"] if entry.get("id") == name), None)
        if entry is None:
            raise ApiError(404, f"There is no model {quoted(name)} here.", "model", "model_not_found")
        return entry

    @api.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await forward(request, "chat/completions")

    @api.post("/v1/completions")
    async def complete(request: Request) -> Response:
        return await forward(request, "completions")

    return api


def _entry(model: str) -> dict[str, Any]:
    return {"id": model, "object": "model", "created": 0, "owned_by": "slim"}


def _unreachable(upstream: str, error: httpx.TransportError) -> ApiError:
    return ApiError(502, f"The server behind the gate, {upstream}, does not answer: {first_line(error)}.")


async def _passed_on(response: httpx.Response, upstream: str, judged: Judged | None) -> Response:
    """The upstream's response: streams as they come, everything else whole."""
    headers = {name: response.headers[name] for name in TO_CLIENT if name in response.headers}
    if judged is not None:
        headers |= {"x-slim-model": judged.model, "x-slim-identity": f"{judged.verdict.identity:.4f}"}
    if response.headers.get("content-type", "").startswith("text/event-stream"):
        return StreamingResponse(_events(response, upstream), response.status_code, headers)
    try:
        return Response(await response.aread(), response.status_code, headers)
    except httpx.TransportError as error:
        raise _unreachable(upstream, error) from None
    finally:
        await response.aclose()


async def _events(response: httpx.Response, upstream: str) -> AsyncGenerator[str | bytes, None]:
    try:
        async with aclosing(response.aiter_raw()) as pieces:  # type: ignore[type-var]
            async for piece in pieces:
                yield piece
    except httpx.TransportError as error:
        # The status has gone out long ago.
        yield event(_unreachable(upstream, error).body)
        yield LAST_EVENT
    finally:
        await response.aclose()
