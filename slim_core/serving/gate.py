# SPDX-License-Identifier: Apache-2.0
"""SLIM's gate for a server that knows only LoRA: one forward of a prompt says which model answers it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from ..base.errors import EngineError
from ..inference import Engine
from ..inference.types import Row, Sampling
from ..inference.verdict import Verdict, verdict_of
from .errors import ApiError, of_validation
from .requests import MOST_PROMPTS, ChatMessage, Prompt, prompts_given


@dataclass(frozen=True)
class Judged:
    """How one request was judged.

    Attributes:
        verdict: how the gate judged its prompt.
        model: the upstream's model that it goes to.
    """

    verdict: Verdict
    model: str


class _Chat(BaseModel):
    """The part of a chat request that is judged; all other fields are passed on unread."""

    model_config = ConfigDict(extra="ignore")

    messages: Annotated[list[ChatMessage], Field(min_length=1)]


class _Completion(BaseModel):
    """The part of a completion request that is judged."""

    model_config = ConfigDict(extra="ignore")

    prompt: Annotated[list[str | tuple[int, ...]], Field(max_length=MOST_PROMPTS), BeforeValidator(prompts_given)]


class Gate:
    """Decides between a base and the static export of a SLIM adapter, prompt by prompt.

    Args:
        engine: the base with the SLIM adapter. Any thread may ask; prompts of several are read in one batch.
        variant: the adapter's name in it.
        threshold: the mean share past LoRA, over the Linears and the tokens of the last turn, from which a prompt goes
            to the base.
        base_model: the upstream's name of the base.
        lora_model: the upstream's name of the export.
    """

    def __init__(self, engine: Engine, variant: str, threshold: float, base_model: str, lora_model: str) -> None:
        self._engine, self._variant, self._threshold = engine, variant, threshold
        self._base, self._lora = base_model, lora_model

    def judge(self, body: Mapping[str, Any], visitor: str | None = None) -> Judged:
        """Read the prompt of a chat or a completion.

        Args:
            body: the request.
            visitor: the client's address; clients take turns.

        Raises:
            ApiError: if there is not exactly one prompt of text or tokens, it is too long, or the model fails.
        """
        verdict = self._verdict(_prompt(body), visitor)
        return Judged(verdict, self._base if verdict.identity >= self._threshold else self._lora)

    def _verdict(self, prompt: Prompt, visitor: str | None) -> Verdict:
        plain = isinstance(prompt, str) or isinstance(prompt[0], int)
        row = Row(self._variant, () if plain else prompt, routing=True, text=prompt if plain else None)  # type: ignore[arg-type]
        try:
            # Its one token is not used: it comes with the forward that reads the prompt.
            *_, step = self._engine.answer([row], Sampling(max_new_tokens=1), visitor=visitor)
        except EngineError as error:
            raise ApiError(500, str(error)) from None
        if step.rows[0].error is not None:
            raise ApiError(400, step.rows[0].error, "prompt" if plain else "messages")
        return verdict_of(step.routing[0])


def _prompt(body: Mapping[str, Any]) -> Prompt:
    try:
        if "messages" in body:
            return tuple(message.message for message in _Chat.model_validate(body).messages)
        prompts = _Completion.model_validate(body).prompt
    except ValidationError as error:
        raise of_validation(error) from None
    if len(prompts) > 1:
        raise ApiError(400, f"The gate judges one prompt at a time; {len(prompts)} were given.", "prompt")
    return prompts[0]
