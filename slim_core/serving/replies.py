# SPDX-License-Identifier: Apache-2.0
"""Answers in the form of OpenAI's API: whole, or piece by piece."""

from __future__ import annotations

import time
import uuid
from typing import Any

from ..inference.types import FinishReason, RowStep, Variant


# A person who stops an answer is unknown to that protocol.
REASONS: dict[FinishReason, str] = {"end": "stop", "stop_string": "stop", "stopped": "stop", "length": "length"}


class Reply:
    """The envelope of one request's answer.

    Args:
        model: the name that was asked for.
    """

    def __init__(self, model: str) -> None:
        self._id, self._created, self._model = f"chatcmpl-{uuid.uuid4().hex}", int(time.time()), model

    def _envelope(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}

    def whole(self, rows: list[RowStep]) -> dict[str, Any]:
        """All choices at once."""
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": row.text, "refusal": None},
                "logprobs": None,
                "finish_reason": _reason(row),
            }
            for index, row in enumerate(rows)
        ]
        return {**self._envelope("chat.completion"), "choices": choices, "usage": usage(rows)}

    def piece(self, index: int, delta: dict[str, Any], row: RowStep | None = None) -> dict[str, Any]:
        """A chunk of one choice; with `row`, its end."""
        reason = None if row is None else _reason(row)
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
        return {**self._envelope("chat.completion.chunk"), "choices": [choice]}

    def last(self, rows: list[RowStep]) -> dict[str, Any]:
        """The number of tokens, at the end of a stream."""
        return {**self._envelope("chat.completion.chunk"), "choices": [], "usage": usage(rows)}


def _reason(row: RowStep) -> str | None:
    return None if row.finish_reason is None else REASONS.get(row.finish_reason)


def usage(rows: list[RowStep]) -> dict[str, int]:
    """Tokens of the prompt, which was asked once, and of all answers."""
    prompt, written = rows[0].prompt_tokens, sum(row.tokens for row in rows)
    return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}


def model_entry(variant: Variant, base: str) -> dict[str, Any]:
    """A variant in the list of models."""
    return {
        "id": variant.name,
        "object": "model",
        "created": 0,
        "owned_by": "slim",
        "root": base,
        "description": " ".join(filter(None, (variant.label, variant.detail))),
    }
