# SPDX-License-Identifier: Apache-2.0
"""A refused request: a status and one sentence."""

from __future__ import annotations

from starlette.formparsers import MultiPartException


# Also what Gradio's reader of uploads expects to be raised: it then closes and deletes what had come so far.
class Refusal(MultiPartException):
    """A request is refused.

    Attributes:
        status: HTTP status, 400 or above.
        sentence: what is wrong, and what would be right.
    """

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence

    def __str__(self) -> str:
        return self.sentence
