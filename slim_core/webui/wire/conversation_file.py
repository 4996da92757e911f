# SPDX-License-Identifier: Apache-2.0
"""The fields of a saved conversation and what each may hold. Anything else is refused with one sentence.

Texts of people, names and sampling settings are of any type here: `limits.py` checks them, as when they are typed.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...inference.types import FinishReason
from ..limits import LimitError


MAX_TURNS, MAX_TOKENS, MAX_LINEARS, MAX_READERS = 200, 100_000, 5_000, 16

Whole = Annotated[int, Field(ge=0, lt=2**31)]
Size = Annotated[int, Field(ge=0, le=10**15)]
Seconds = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
Nats = Annotated[float, Field(ge=-1e6, le=1e9, allow_inf_nan=False)]
# A token may be any text that can be sent to a browser.
TokenText = Annotated[str, Field(max_length=1000)]
# A model may write anything, including control characters, and MAX_TOKENS tokens can be a long text.
Written = Annotated[str, Field(max_length=100 * MAX_TOKENS)]
Tokens = Annotated[list[TokenText], Field(max_length=MAX_TOKENS)]

# What a value must be, by pydantic's name of the error.
MUST_BE = {
    "missing": "is missing",
    "model_type": "must be an object",
    "dict_type": "must be an object",
    "list_type": "must be a list",
    "too_long": "must be a list of at most {max_length:,}",
    "string_type": "must be text",
    "string_unicode": "must be text",
    "string_too_long": "must be text of at most {max_length:,} characters",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "finite_number": "must be a finite number",
    "greater_than_equal": "must be at least {ge:,}",
    "less_than_equal": "must be at most {le:,}",
    "less_than": "must be less than {lt:,}",
    "literal_error": "must be {expected}",
}


class _Part(BaseModel):
    """Of a saved conversation. JSON has lists, so no field is a tuple; fields that are not known are ignored."""

    model_config = ConfigDict(strict=True)


M = TypeVar("M", bound=_Part)


class PackedArray(_Part):
    """Numbers in little-endian order as base64."""

    dtype: str
    shape: Annotated[list[Whole], Field(max_length=3)]
    base64: str


class SavedRouting(_Part):
    """The routing of one answer; see `RoutingRecord`. Files from before there were gates have no gate."""

    tokens: Tokens
    prompt_tokens: Whole
    modules: Annotated[list[TokenText], Field(max_length=MAX_LINEARS)]
    blocks: Annotated[list[Whole], Field(max_length=MAX_LINEARS)]
    num_experts: Whole
    weights: PackedArray
    distance: PackedArray
    cluster: PackedArray
    gate: PackedArray | None = None
    reference: PackedArray | None = None
    turn: Whole | None = None
    complete: bool = True


class SavedVariant(_Part):
    """The variant that gave an answer."""

    kind: str
    label: Any
    detail: Any
    parameters: Size
    bytes: Size
    strength: Any = None


class SavedAnswer(_Part):
    """One answer, as a finished `RowStep` with what it was made with."""

    text: Written
    finish_reason: FinishReason
    error: Written | None = None
    tokens: Whole
    prompt_tokens: Whole
    seconds: Seconds
    first_token_seconds: Seconds | None = None
    tokens_per_second: Seconds | None = None
    token_ids: Annotated[list[Whole], Field(max_length=MAX_TOKENS)]
    sampling: Any = None
    strength: Any = None
    quantile: Any = None
    variant: SavedVariant | None = None
    routing: SavedRouting | None = None


class SavedReader(_Part):
    """The drift of one variant, in nats per token."""

    variant: Any
    log_ratio: Annotated[list[Nats], Field(max_length=MAX_TOKENS)]
    kl: Annotated[list[Nats], Field(max_length=MAX_TOKENS)]


class SavedDrift(_Part):
    """How variants read the base's answer."""

    tokens: Tokens
    variants: Annotated[list[SavedReader], Field(max_length=MAX_READERS)]


class SavedTurn(_Part):
    """A prompt and its answers; an answer is read only when its column is known."""

    prompt: Any
    system: Any = ""
    answers: dict[str, Any]
    drift: SavedDrift | None = None
    vote: Any = None


class SavedTurns(_Part):
    """The turns of a conversation, of which `exchange` checks format, version and base first."""

    turns: Annotated[list[SavedTurn], Field(max_length=MAX_TURNS)]


def parsed(kind: type[M], value: Any, name: str) -> M:
    """A value as one part of a conversation.

    Args:
        kind: which part.
        value: from JSON.
        name: what it is called if it is not even an object.

    Raises:
        LimitError: with a sentence on the first field that is wrong.
    """
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    field = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in first["loc"]).removeprefix(".")
    must_be = MUST_BE.get(first["type"], "is not what this app writes").format(**first.get("ctx", {}))
    raise LimitError(f"{field or name} in the conversation {must_be}.")
