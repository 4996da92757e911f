# SPDX-License-Identifier: Apache-2.0
"""What every API here does with HTTP: it reads JSON within a limit, and refuses in OpenAI's form."""

from __future__ import annotations

import json
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from ..outside.errors import megabytes, shown
from .errors import ApiError


# Bytes of a request.
MOST_BYTES = 4_000_000


def new_api(**options: Any) -> FastAPI:
    """An app whose errors have OpenAI's form. A page of documentation would load its scripts from elsewhere.

    Args:
        options: of FastAPI.
    """
    api = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, **options)

    @api.exception_handler(ApiError)
    async def tell(request: Request, error: ApiError) -> JSONResponse:
        return _refusal(error)

    @api.exception_handler(HTTPException)
    async def tell_of_address(request: Request, error: HTTPException) -> JSONResponse:
        place = f"{request.method} {request.url.path}"
        return _refusal(ApiError(error.status_code, f"{shown(place, 200)} is not part of this API."))

    return api


def _refusal(error: ApiError) -> JSONResponse:
    headers = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "2"}}.get(error.status)
    return JSONResponse(error.body, error.status, headers)


async def read_json(request: Request) -> Any:
    """The request's body; raises ApiError if it is too large or no JSON."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MOST_BYTES:
            raise ApiError(413, f"The request has more than {megabytes(MOST_BYTES)}; that is too much.")
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise ApiError(400, "The body of the request is not JSON.") from None


def event(content: dict[str, Any]) -> str:
    """One event of a stream."""
    return f"data: {json.dumps(content, ensure_ascii=False, separators=(',', ':'))}\n\n"


# What ends a stream.
LAST_EVENT = "data: [DONE]\n\n"
