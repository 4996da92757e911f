# SPDX-License-Identifier: Apache-2.0
"""The API as a separate process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import uvicorn
from fastapi import FastAPI

from .http import MOST_CONNECTIONS, Bounded
from .openai_api import standalone_api
from .protocol import Service


# Of proxies, Uvicorn believes those on this machine, or those in `FORWARDED_ALLOW_IPS`.
OPTIONS: dict[str, Any] = {
    "log_level": "warning",
    "access_log": False,
    "limit_concurrency": MOST_CONNECTIONS,
    "timeout_graceful_shutdown": 5,
}


def serve_alone(service: Service, key: str | None, origins: Sequence[str], host: str, port: int) -> None:
    """Serve an engine until the process is asked to end.

    Args:
        service: the engine that answers, with its places.
        key: that clients must send; None asks for none.
        origins: of web pages whose scripts may call it from a browser; `*` is every page.
        host: address to serve at.
        port: to serve at.
    """
    serve_app(standalone_api(service, key, origins), host, port)


def serve_app(app: FastAPI, host: str, port: int) -> None:
    """Serve an app until the process is asked to end.

    Args:
        app: an ASGI app.
        host: address to serve at.
        port: to serve at.
    """
    uvicorn.run(Bounded(app, MOST_CONNECTIONS // 2), host=host, port=port, **OPTIONS)
