# SPDX-License-Identifier: Apache-2.0
"""Errors in the form of OpenAI's API, which its clients turn into their own exceptions."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from ..outside.errors import shown


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


def of_validation(error: ValidationError) -> ApiError:
    """The first thing that is wrong with a request."""
    first = error.errors(include_url=False)[0]
    place = ""
    for part in first["loc"]:
        # Pydantic adds the branches of a union to the path; the request has no such fields.
        if isinstance(part, int):
            place += f"[{part}]"
        elif part.isidentifier() and not part.startswith(("function-", "tagged-")):
            place += f".{part}" if place else part
    given = "" if first["type"] == "missing" else f" {shown(first['input'])} was given."
    message = first["msg"].removeprefix("Value error, ").rstrip(".")
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"{place} is not a field that this server knows.", place, "unknown_parameter")
    if first["type"] == "missing":
        return ApiError(400, f"{place} is missing.", place, "missing_required_parameter")
    return ApiError(400, f"{place}: {message}.{given}" if place else f"{message}.{given}", place or None)
