# SPDX-License-Identifier: Apache-2.0
"""Requests in OpenAI's protocol. A field that would change the answer is supported or refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from ..base.messages import Message, Role
from ..inference import GateSetting
from ..inference.types import Row, Sampling
from .errors import unusable


# Fields that do not change the answer; they are accepted and ignored.
IGNORED = {
    "metadata",
    "parallel_tool_calls",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
}
# The values of each field that have no effect; any other value is refused.
NOTHING: dict[str, tuple[Any, ...]] = {
    "audio": (None,),
    "best_of": (None, 1),
    "frequency_penalty": (None, 0),
    "function_call": (None, "none", "auto"),
    "functions": (None, []),
    "logit_bias": (None, {}),
    "modalities": (None, ["text"]),
    "prediction": (None,),
    "presence_penalty": (None, 0),
    "reasoning_effort": (None, "none"),
    "response_format": (None, {"type": "text"}),
    "suffix": (None, ""),
    "tool_choice": (None, "none", "auto"),
    "tools": (None, []),
    "verbosity": (None, "medium"),
    "web_search_options": (None,),
}
MOST_CHOICES = 8
MOST_STOPS = 16
MOST_PROMPTS = 64
MOST_LIKELIEST = 20
# The default of OpenAI's API.
COMPLETION_TOKENS = 16
# What an answer follows: a conversation, plain text, or token ids.
Prompt = tuple[Message, ...] | str | tuple[int, ...]
ROLES: dict[str, Role] = {"developer": "system", "system": "system", "user": "user", "assistant": "assistant"}

Temperature = Annotated[float, Field(ge=0, le=2)]
Share = Annotated[float, Field(gt=0, le=1)]
# The most is the server's to say.
Count = Annotated[int, Field(ge=1)]
Likeliest = Annotated[int, Field(ge=0, le=MOST_LIKELIEST)]
StopText = Annotated[str, Field(min_length=1, max_length=1000)]


def _as_list(given: Any) -> Any:
    if not isinstance(given, (str, list)):
        raise ValueError("a text or a list of texts")
    return [given] if isinstance(given, str) else given


# Not unions: the error could then be about the branch that was not meant.
StopTexts = Annotated[list[StopText], Field(max_length=MOST_STOPS), BeforeValidator(_as_list)]


STRICT = ConfigDict(extra="forbid", strict=True)


def _without(fields: Any, empty: Callable[[str, Any], bool]) -> Any:
    """An object without some of its fields."""
    if not isinstance(fields, dict):
        return fields
    return {name: value for name, value in fields.items() if not empty(name, value)}


class TextPart(BaseModel):
    """A piece of a message's text."""

    model_config = STRICT

    type: Literal["text"]
    text: str


def _parts(content: Any) -> Any:
    if not isinstance(content, (str, list)):
        raise ValueError("a text or a list of its parts")
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


class ChatMessage(BaseModel):
    """One message of a conversation."""

    model_config = STRICT

    role: Literal["developer", "system", "user", "assistant"]
    content: Annotated[list[TextPart], BeforeValidator(_parts)]

    @model_validator(mode="before")
    @classmethod
    def _leave_out(cls, fields: Any) -> Any:
        # Clients send an answer back as they got it, with fields that are empty. No chat template here reads a name.
        return _without(fields, lambda name, value: name == "name" or (name != "content" and value in (None, [])))

    @property
    def message(self) -> Message:
        """As the engine reads it."""
        return Message(ROLES[self.role], "".join(part.text for part in self.content))


class StreamOptions(BaseModel):
    """How an answer is streamed."""

    model_config = STRICT

    include_usage: bool = False

    @model_validator(mode="before")
    @classmethod
    def _leave_out(cls, fields: Any) -> Any:
        return _without(fields, lambda name, value: value is None or (name, value) == ("include_obfuscation", False))


class GenerationRequest(BaseModel):
    """Fields of both types of request. `top_k` and the fields after it are not OpenAI's."""

    model_config = STRICT

    model: str
    temperature: Temperature | None = None
    top_p: Share | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: StopTexts | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    top_k: Annotated[int, Field(ge=0, le=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.1, le=10)] | None = None
    slim_strength: Annotated[float, Field(ge=0, le=1e6)] | None = None
    slim_quantile: Annotated[float, Field(gt=0, lt=1)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _leave_out(cls, fields: Any) -> Any:
        for name, nothing in NOTHING.items():
            if isinstance(fields, dict) and name in fields and fields[name] not in nothing:
                raise unusable(name, f"This server does not support {name}; leave it out.", "unsupported_parameter")
        return _without(fields, lambda name, value: value is None or name in IGNORED or name in NOTHING)

    @property
    def prompts(self) -> Sequence[Prompt]:
        """What is to be answered; at least one."""
        raise NotImplementedError

    @property
    def wanted_tokens(self) -> int | None:
        """The requested maximum length of an answer; None for no limit."""
        raise NotImplementedError

    @property
    def length_field(self) -> str:
        """The field that says so."""
        return "max_tokens"

    @property
    def likeliest(self) -> int | None:
        """How many of the likeliest tokens are wanted beside each; None if no log-probabilities are."""
        raise NotImplementedError

    def row(self, prompt: Prompt) -> Row:
        """An answer, as the engine is asked for it."""
        plain = isinstance(prompt, str) or isinstance(prompt[0], int)
        return Row(
            self.model,
            () if plain else cast("tuple[Message, ...]", prompt),
            gate=GateSetting(self.slim_strength, self.slim_quantile),
            text=cast("str | tuple[int, ...]", prompt) if plain else None,
            log_probs=self.likeliest,
        )

    @property
    def choices(self) -> int:
        """How many answers are wanted to each prompt."""
        return self.n or 1

    @property
    def usage_at_end(self) -> bool:
        """Whether a stream ends with the number of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling(self, max_new_tokens: int, seed: int) -> Sampling:
        """How tokens are chosen. As in OpenAI's API the default temperature is 1."""
        return Sampling(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=self.top_k or 0,
            min_p=self.min_p or 0.0,
            repetition_penalty=self.repetition_penalty or 1.0,
            max_new_tokens=max_new_tokens,
            stop=tuple(self.stop or ()),
            seed=seed,
        )


class ChatRequest(GenerationRequest):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Likeliest | None = None

    @model_validator(mode="after")
    def _agrees(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            sentence = "top_logprobs has no effect without logprobs: set logprobs to true."
            raise unusable("top_logprobs", sentence)
        if None not in (self.max_tokens, self.max_completion_tokens):
            sentence = "max_tokens and max_completion_tokens mean the same: leave one of them out."
            raise unusable("max_tokens", sentence)
        return self

    @property
    def prompts(self) -> Sequence[Prompt]:
        """The conversation."""
        return [tuple(message.message for message in self.messages)]

    @property
    def wanted_tokens(self) -> int | None:
        """The requested maximum length of an answer; None for no limit."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def length_field(self) -> str:
        """The field that says so."""
        return "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"

    @property
    def likeliest(self) -> int | None:
        """How many of the likeliest tokens are wanted beside each; None if no log-probabilities are."""
        return (self.top_logprobs or 0) if self.logprobs else None


def _ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(token) is int for token in value)


def prompts_given(value: Any) -> Any:
    """One text or more, each as a text or as its tokens."""
    prompts = [value] if isinstance(value, str) or _ids(value) else value
    if (
        not isinstance(prompts, list)
        or not prompts
        or not all(isinstance(prompt, str) or _ids(prompt) for prompt in prompts)
    ):
        raise ValueError("a text, a list of texts, a list of token ids, or a list of lists of token ids")
    return [prompt if isinstance(prompt, str) else tuple(prompt) for prompt in prompts]


class CompletionRequest(GenerationRequest):
    """`POST /v1/completions`."""

    prompt: Annotated[list[str | tuple[int, ...]], Field(max_length=MOST_PROMPTS), BeforeValidator(prompts_given)]
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    logprobs: Likeliest | None = None
    echo: bool | None = None

    @property
    def prompts(self) -> Sequence[Prompt]:
        """The texts."""
        return self.prompt

    @property
    def wanted_tokens(self) -> int | None:
        """The requested maximum length of an answer; 0 for the prompt alone."""
        return COMPLETION_TOKENS if self.max_tokens is None else self.max_tokens

    @property
    def likeliest(self) -> int | None:
        """How many of the likeliest tokens are wanted beside each; None if no log-probabilities are."""
        return self.logprobs

    def row(self, prompt: Prompt) -> Row:
        """An answer, as the engine is asked for it."""
        return replace(super().row(prompt), prompt_log_probs=bool(self.echo) and self.logprobs is not None)
