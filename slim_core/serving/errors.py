# SPDX-License-Identifier: Apache-2.0
"""Errors in the form of OpenAI's API, which its clients turn into their own exceptions."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from ..outside.errors import quoted


class ApiError(Exception):
    """A request that is refused. The message is a complete sentence.

    Args:
        status: HTTP status.
        message: one sentence.
        param: the field that it is about.
        code: a word for programs.
    """

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    @property
    def body(self) -> dict[str, Any]:
        """The body of the response."""
        return {"error": {"message": str(self), "type": self._kind, "param": self.param, "code": self.code}}

    @property
    def _kind(self) -> str:
        kinds = {401: "authentication_error", 429: "rate_limit_error"}
        return kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")


def unusable(field: str, sentence: str, code: str | None = None) -> PydanticCustomError:
    """For validators: what is wrong with a field, as a complete sentence."""
    return PydanticCustomError("unusable", "{sentence}", {"sentence": sentence, "field": field, "word": code or ""})


# What a field must be, by the kind of error that Pydantic finds.
MUST = {
    "bool_type": "true or false",
    "float_type": "a number",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "int_from_float": "a whole number",
    "int_type": "a whole number",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "list_type": "a list",
    "literal_error": "{expected}",
    "model_type": "a JSON object",
    "string_too_long": "a text of at most {max_length} characters",
    "string_too_short": "a text that is not empty",
    "string_type": "a text",
    "too_long": "a list of at most {max_length} items",
    "too_short": "a list that is not empty",
}


def of_validation(error: ValidationError) -> ApiError:
    """The first thing that is wrong with a request, in one sentence."""
    first = error.errors(include_url=False)[0]
    kind, context = first["type"], first.get("ctx", {})
    if kind == "unusable":
        return ApiError(400, context["sentence"], context["field"], context["word"] or None)
    place = ""
    for step in first["loc"]:
        # Pydantic adds the branches of a union to the path; the request has no such fields.
        if isinstance(step, int):
            place += f"[{step}]"
        elif step.isidentifier() and not step.startswith(("function-", "tagged-")):
            place += f".{step}" if place else step
        elif kind == "extra_forbidden":
            place = quoted(step)
    if kind == "extra_forbidden":
        return ApiError(400, f"{place} is not a field that this server knows.", place, "unknown_parameter")
    if kind == "missing":
        return ApiError(400, f"{place} is missing.", place, "missing_required_parameter")
    limits = {name: int(n) if isinstance(n, float) and n.is_integer() else n for name, n in context.items()}
    must = MUST[kind].format(**limits) if kind in MUST else first["msg"].removeprefix("Value error, ").rstrip(".")
    return ApiError(400, f"{place or 'The request'} must be {must}, not {quoted(first['input'])}.", place or None)
