# SPDX-License-Identifier: Apache-2.0
"""What a request asks of the engine: checked as soon as it has a place, then answered step by step."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing
from dataclasses import replace

import anyio
from anyio.to_thread import run_sync

from ..base.errors import EngineError
from ..inference import check_quantile
from ..inference.stops import Stops
from ..inference.types import RowStep, Step, Variant
from ..outside.errors import quoted
from .errors import ApiError
from .http import FAILED
from .protocol import BusyError, Service
from .requests import ChatRequest, GenerationRequest


ChoiceStep = tuple[int, RowStep]
ChoiceSteps = AsyncGenerator[ChoiceStep, None]


def no_model(service: Service, name: str) -> ApiError:
    """The error for a name that no model has."""
    names = ", ".join(service.models)
    return ApiError(404, f"There is no model {quoted(name)} here; there are {names}.", "model", "model_not_found")


def _check(service: Service, request: GenerationRequest, variant: Variant) -> None:
    """Check a well-formed request for a variant; raises ApiError."""
    for field, number in (("slim_strength", request.slim_strength), ("slim_quantile", request.slim_quantile)):
        if number is not None and variant.strength is None:
            raise ApiError(400, f"{request.model} has no gate, so {field} has no effect.", field)
    try:
        check_quantile(request.slim_quantile, variant.quantiles, request.model)
    except ValueError as error:
        raise ApiError(400, str(error), "slim_quantile") from None
    tokens, limit = request.wanted_tokens, service.max_new_tokens
    if tokens is not None and tokens > limit:
        sentence = f"An answer here has at most {limit} tokens; {quoted(tokens)} were asked for."
        raise ApiError(400, sentence, request.length_field)
    field, title = ("messages", "conversation") if isinstance(request, ChatRequest) else ("prompt", "prompt")
    room = service.engine.info.context_length
    for prompt in request.prompts:
        try:
            length = service.engine.count_tokens(prompt)
        except EngineError as error:
            raise ApiError(400, str(error), field) from None
        if length >= room:
            sentence = f"The {title} has {length} tokens, but the model reads and writes at most {room}: shorten it."
            raise ApiError(400, sentence, field, "context_length_exceeded")


def _answers(
    service: Service, request: GenerationRequest, variant: str, stops: Stops, visitor: str | None
) -> list[Generator[Step, None, None]]:
    """For each requested choice an answer to every prompt, each choice with its own random numbers."""
    rows = [replace(request.row(prompt), variant=variant) for prompt in request.prompts]
    seed = secrets.randbits(62) if request.seed is None else request.seed
    tokens = service.max_new_tokens if request.wanted_tokens is None else max(1, request.wanted_tokens)
    return [
        service.answer(rows, request.sampling(tokens, (seed + choice) % 2**63), stops, visitor)
        for choice in range(request.choices)
    ]


async def steps_of(service: Service, request: GenerationRequest, visitor: str | None = None) -> ChoiceSteps:
    """The index and the state of each choice as it comes: those of the first prompt, then those of the second.

    It takes a place and keeps it, with the variant, until it ends or is closed.

    Args:
        service: the engine that answers, with its places.
        request: well-formed.
        visitor: the client's address; clients take turns in the queue.

    Raises:
        ApiError: if there is no place, the request cannot be answered, or the model fails.
    """
    try:
        service.enter(visitor)
    except BusyError as error:
        raise ApiError(429, str(error), code="rate_limit_exceeded") from None
    try:
        async with service.use(request.model) as variant:
            if variant is None:
                raise no_model(service, request.model)
            await run_sync(_check, service, request, variant)
            async with aclosing(_written(service, request, variant.name, visitor)) as steps:
                async for step in steps:
                    yield step
    finally:
        service.leave(visitor)


async def _written(service: Service, request: GenerationRequest, variant: str, visitor: str | None) -> ChoiceSteps:
    """`steps_of` a request that was checked."""
    stops = Stops(len(request.prompts))
    answers = _answers(service, request, variant, stops, visitor)
    # A thread of its own: the places bound how many there are.
    limiter = anyio.CapacityLimiter(1)
    try:
        for choice, answer in enumerate(answers):
            while (step := await run_sync(next, answer, None, abandon_on_cancel=False, limiter=limiter)) is not None:
                for prompt, row in enumerate(step.rows):
                    if row.finish_reason == "error":
                        raise ApiError(500, row.error or FAILED)
                    yield prompt * request.choices + choice, _prompt_alone(row) if request.wanted_tokens == 0 else row
    except EngineError as error:
        raise ApiError(500, str(error)) from None
    finally:
        # The client may have left; the model must become free all the same.
        stops.stop_all()
        with anyio.CancelScope(shield=True):
            for answer in answers:
                await run_sync(answer.close, limiter=limiter)


def _prompt_alone(row: RowStep) -> RowStep:
    """Without the token that the engine writes in any case."""
    reason = row.finish_reason and "length"
    return replace(row, text="", tokens=0, token_ids=(), log_probs=(), finish_reason=reason)
