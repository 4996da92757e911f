# SPDX-License-Identifier: Apache-2.0
"""Streaming tokens to text: no half characters, no special tokens, and stop strings that span tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

from transformers import PreTrainedTokenizerBase


HALF = "\ufffd"
# Enough for any character and the space before it.
TOKENS_BEFORE = 8
Decode = Callable[[list[int]], str]


def decoder_of(tokenizer: PreTrainedTokenizerBase) -> Decode:
    """The tokenizer's decoding without special tokens and without tidying of spaces, which is not incremental."""
    if tokenizer.is_fast:
        # Bypasses the wrapper, whose overhead costs more than the decoding.
        backend = tokenizer.backend_tokenizer
        return lambda ids: backend.decode(ids, skip_special_tokens=True)
    # One text of one list.
    return lambda ids: cast("str", tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


class AnswerText:
    """The text of one answer as its tokens come.

    A token's text depends on the one before it (spaces, characters of several bytes). So each new token is decoded
    together with the last ones, and what is new is the difference.

    Args:
        decode: ids to text.
        stop: texts that end the answer.
        before: tokens of the text that it continues, so that the space between them is part of it; empty for an
            answer from its beginning, which begins without one.
        spaced: whether the text that it continues ends with a space that is not among these tokens.
    """

    def __init__(
        self, decode: Decode, stop: Sequence[str] = (), before: Sequence[int] = (), spaced: bool = False
    ) -> None:
        self._decode = decode
        self._stop = [text for text in stop if text]
        self._window = [*before[-TOKENS_BEFORE:]]
        self._known = len(self._window)
        # Half a character may be completed.
        self._known_text = decode(self._window).rstrip(HALF) if before else ""
        self._text = ""
        self._held = 0
        self._begun = bool(before) and not spaced

    @property
    def text(self) -> str:
        """The answer so far. Text that may be the beginning of a stop string is held back."""
        return self._text[: len(self._text) - self._held]

    def push(self, token: int) -> bool:
        """Add a token.

        Returns:
            Whether a stop string has come; the text then ends before it.
        """
        self._window.append(token)
        whole = self._decode(self._window)
        if whole.endswith(HALF):
            return False
        new = whole[len(self._known_text) :]
        self._window = self._window[self._known :]
        self._known = len(self._window)
        self._known_text = self._decode(self._window)
        return self._add(new)

    def finish(self) -> None:
        """There are no more tokens: release the text that was held back, but not half a character."""
        rest = self._decode(self._window)[len(self._known_text) :].rstrip(HALF)
        self._window, self._known, self._known_text = [], 0, ""
        if not self._add(rest):
            self._held = 0

    def _add(self, new: str) -> bool:
        if new and not self._begun:
            # Many vocabularies write a word together with the space before it. An answer does not begin with one.
            self._begun = True
            new = new.removeprefix(" ")
        searched = len(self._text)
        self._text += new
        if not self._stop:
            return False
        positions = [self._text.find(stop, max(0, searched - len(stop) + 1)) for stop in self._stop]
        if any(position >= 0 for position in positions):
            self._text = self._text[: min(position for position in positions if position >= 0)]
            self._held = 0
            return True
        self._held = max(_overlap(self._text, stop) for stop in self._stop)
        return False


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
