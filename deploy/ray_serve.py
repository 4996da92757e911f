# SPDX-License-Identifier: Apache-2.0
"""The OpenAI-compatible API on several replicas with Ray Serve; docs/deploy.md explains it.

serve run deploy.ray_serve:app replicas=2 adapters=my-adapters
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.exceptions import ObjectLostError, RayActorError
from ray.serve import Application
from ray.serve.exceptions import ReplicaUnavailableError

from slim_core.commands.serve import api_service
from slim_core.outside.files import adapters_in
from slim_core.serving.errors import ApiError
from slim_core.serving.http import MOST_CONNECTIONS
from slim_core.serving.replicas import Call, Pieces, ReplicaLostError, ResponseStart, Send, replicated_api
from slim_core.webui.config import Config, variable


LOST = (RayActorError, ObjectLostError, ReplicaUnavailableError)
# Seconds in which a replica that is to go may finish its answers.
TO_FINISH = 600
HEADER = "x-slim-replica"


class Arguments(BaseModel):
    """Arguments of the application. All others are settings of `python -m slim_core serve`, by their flags' names.

    Attributes:
        replicas: how many there are at least.
        max_replicas: how many there are at most; None for as many as at least.
        cpus: cores that each takes; also the number of its threads.
        gpus: GPUs that each takes.
    """

    model_config = ConfigDict(extra="allow")

    replicas: int = Field(1, ge=1)
    max_replicas: int | None = Field(None, ge=1)
    cpus: float = Field(1, gt=0)
    gpus: float = Field(0, ge=0)

    @property
    def most(self) -> int:
        """How many replicas there are at most."""
        return max(self.replicas, self.max_replicas or 0)


class Replica:
    """One engine, with all variants and the adapters that its requests name.

    Args:
        config: as of `serve --api-only`.
    """

    def __init__(self, config: Config) -> None:
        from slim_core.inference import Row
        from slim_core.serving.openai_api import standalone_api

        # Ray bounds how many come at once, but the place of a client that left may be given back a little later.
        self._service = api_service(replace(config, concurrency=2 * config.concurrency))
        self._app = standalone_api(self._service)
        self._id = serve.get_replica_context().replica_id.unique_id
        self._probe = Row("base", (), text="1")

        async def load(name: str) -> str:
            async with self._service.use(name):
                return name

        # With this, Ray Serve sends requests for an adapter to a replica that has it. What is in memory is the
        # service's own matter, whose limit is the same.
        self._with_adapter = serve.multiplexed(load, max_num_models_per_replica=config.max_adapters)

    async def call(self, call: Call) -> Pieces:
        """Answer a request."""
        from slim_core.serving.asgi import respond

        if name := serve.get_multiplexed_model_id():
            # If it is refused, the app says why.
            with suppress(ApiError):
                await self._with_adapter(name)
        async with aclosing(respond(self._app, call)) as pieces:
            async for piece in pieces:
                if isinstance(piece, ResponseStart):
                    piece = piece._replace(headers=piece.headers | {HEADER: self._id})
                yield piece

    async def check_health(self) -> None:
        """Let the model read a token, unless it is answering; raises EngineError if it fails."""
        await asyncio.to_thread(self._service.engine.peek, self._probe)


def sender(name: str, application: str, folder: str) -> Send:
    """Gives calls to the replicas of a deployment."""
    replicas = serve.get_deployment_handle(name, application)

    async def send(call: Call) -> AsyncGenerator[ResponseStart | bytes, None]:
        adapter = call.model if folder and call.model in adapters_in(folder) else ""
        response = replicas.options(stream=True, multiplexed_model_id=adapter).call.remote(call)
        try:
            async for piece in response:
                yield piece
        except LOST as error:
            raise ReplicaLostError from error
        finally:
            response.cancel()

    return send


def app(arguments: dict[str, Any]) -> Application:
    """The application, for `serve run` and `serve deploy`."""
    options = Arguments.model_validate(arguments)
    settings = {variable(name): str(value) for name, value in (options.model_extra or {}).items()}
    config = _whole_paths(Config.read(os.environ | settings, page=False))
    waiting = options.most * config.concurrency + config.queue_size

    def front() -> FastAPI:
        context = serve.get_replica_context()
        send = sender("Replica", context.app_name, config.adapters)
        return replicated_api(send, waiting, config.api_key or None, config.origins)

    replicas = serve.deployment(
        Replica,
        max_ongoing_requests=config.concurrency,
        graceful_shutdown_timeout_s=TO_FINISH,
        ray_actor_options={"num_cpus": options.cpus, "num_gpus": options.gpus},
        **_number(options, config),
    )
    return serve.deployment(
        serve.ingress(front)(),
        name="Front",
        max_ongoing_requests=MOST_CONNECTIONS,
        graceful_shutdown_timeout_s=TO_FINISH,
        ray_actor_options={"num_cpus": 0.1},
    ).bind(replicas.bind(config))


def _whole_paths(config: Config) -> Config:
    """Replicas may be started elsewhere, so their folders are named in full."""
    named = {name: getattr(config, name) for name in ("base", "lora", "slim", "adapters")}
    return replace(
        config, **{name: str(Path(path).resolve()) for name, path in named.items() if path and Path(path).is_dir()}
    )


def _number(options: Arguments, config: Config) -> dict[str, Any]:
    if options.most == options.replicas:
        return {"num_replicas": options.replicas}
    return {
        "autoscaling_config": {
            "min_replicas": options.replicas,
            "max_replicas": options.most,
            # Running and queued, for each replica: another one comes before the places of all are taken.
            "target_ongoing_requests": max(1, config.concurrency // 2),
        }
    }
