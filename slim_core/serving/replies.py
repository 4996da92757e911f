# SPDX-License-Identifier: Apache-2.0
"""Answers in the form of OpenAI's API: whole, or piece by piece."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ..inference.types import FinishReason, RowStep, TokenLogProb
from .requests import CompletionRequest, GenerationRequest


# The protocol has no reason for an answer that a person stopped.
REASONS: dict[FinishReason, str] = {"end": "stop", "stop_string": "stop", "stopped": "stop", "length": "length"}
# What OpenAI's API gives for a token whose probability is 0.
IMPOSSIBLE = -9999.0
HALF = "\ufffd"
TokenTexts = Callable[[Sequence[int]], tuple[str, ...]]


class Reply:
    """The envelope of one request's answers.

    Args:
        request: what was asked for.
        texts: gives the text of each token.
    """

    prefix = kind = piece_kind = ""

    def __init__(self, request: GenerationRequest, texts: TokenTexts) -> None:
        self._id, self._created = f"{self.prefix}-{uuid.uuid4().hex}", int(time.time())
        self._request, self._texts = request, texts
        # By choice: characters and tokens that were sent.
        self._sent: dict[int, tuple[int, int]] = {}

    def _envelope(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._request.model}

    def whole(self, rows: Mapping[int, RowStep]) -> dict[str, Any]:
        """All choices at once, by index."""
        choices = [self._choice(index, row) for index, row in sorted(rows.items())]
        return {**self._envelope(self.kind), "choices": choices, "usage": self._usage(rows)}

    def pieces(self, index: int, row: RowStep) -> Iterator[dict[str, Any]]:
        """What is new of a choice, as chunks of a stream. Nothing is sent before the model begins to write."""
        if row.state not in ("writing", "done"):
            return
        if index not in self._sent:
            self._sent[index] = (0, 0)
            yield from self._beginning(index, row)
        text, tokens = self._sent[index]
        if len(row.text) > text:
            self._sent[index] = len(row.text), len(row.log_probs)
            yield self._piece(index, self._new(index, row, text, tokens))
            tokens = len(row.log_probs)
        if row.state == "done":
            self._sent[index] = len(row.text), len(row.log_probs)
            yield self._piece(index, self._new(index, row, len(row.text), tokens), row)

    def last(self, rows: Mapping[int, RowStep]) -> dict[str, Any]:
        """The number of tokens, at the end of a stream."""
        return {**self._envelope(self.piece_kind), "choices": [], "usage": self._usage(rows)}

    def _piece(self, index: int, content: dict[str, Any], row: RowStep | None = None) -> dict[str, Any]:
        """A chunk of one choice; with `row`, its end."""
        choice = {"index": index, **content, "finish_reason": None if row is None else _reason(row)}
        return {**self._envelope(self.piece_kind), "choices": [choice]}

    def _usage(self, rows: Mapping[int, RowStep]) -> dict[str, int]:
        """Tokens of the prompts, each of which was asked once, and of all answers."""
        prompt = sum(row.prompt_tokens for index, row in rows.items() if index % self._request.choices == 0)
        written = sum(row.tokens for row in rows.values())
        return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}

    def _choice(self, index: int, row: RowStep) -> dict[str, Any]:
        raise NotImplementedError

    def _beginning(self, index: int, row: RowStep) -> Iterator[dict[str, Any]]:
        """The first chunks of a choice."""
        raise NotImplementedError

    def _new(self, index: int, row: RowStep, text: int, tokens: int) -> dict[str, Any]:
        """The text from a character on, and the log-probabilities from a token on."""
        raise NotImplementedError


class ChatReply(Reply):
    """Messages."""

    prefix, kind, piece_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def _choice(self, index: int, row: RowStep) -> dict[str, Any]:
        message = {"role": "assistant", "content": row.text, "refusal": None}
        choice = {"index": index, "message": message, "logprobs": self._log_probs(row, 0)}
        return {**choice, "finish_reason": _reason(row)}

    def _beginning(self, index: int, row: RowStep) -> Iterator[dict[str, Any]]:
        yield self._piece(index, {"delta": {"role": "assistant", "content": ""}, "logprobs": None})

    def _new(self, index: int, row: RowStep, text: int, tokens: int) -> dict[str, Any]:
        delta = {"content": row.text[text:]} if len(row.text) > text else {}
        return {"delta": delta, "logprobs": self._log_probs(row, tokens)}

    def _log_probs(self, row: RowStep, tokens: int) -> dict[str, Any] | None:
        # Without the token that ended the answer, which is not part of the message.
        log_probs = row.log_probs[tokens : len(row.token_ids)]
        if self._request.likeliest is None:
            return None
        return {"content": [self._log_prob(entry) for entry in log_probs], "refusal": None}

    def _log_prob(self, chosen: TokenLogProb) -> dict[str, Any]:
        named = self._named(chosen.token, chosen.log_prob)
        return {**named, "top_logprobs": [self._named(token, value) for token, value in chosen.likeliest]}

    def _named(self, token: int, log_prob: float | None) -> dict[str, Any]:
        assert log_prob is not None  # only the first token of a prompt has none
        (text,) = self._texts([token])
        # The bytes of half a character are not known.
        return {"token": text, "logprob": _number(log_prob), "bytes": None if HALF in text else list(text.encode())}


class CompletionReply(Reply):
    """Continued texts.

    Args:
        request: what was asked for.
        texts: gives the text of each token.
    """

    prefix, kind, piece_kind = "cmpl", "text_completion", "text_completion"

    def __init__(self, request: CompletionRequest, texts: TokenTexts) -> None:
        super().__init__(request, texts)
        self._prompts, self._echo = request.prompt, bool(request.echo)
        # By choice, where the next token begins.
        self._offsets: dict[int, int] = {}

    def _choice(self, index: int, row: RowStep) -> dict[str, Any]:
        text, log_probs = row.text, row.log_probs
        if self._echo:
            text, log_probs = self._prompt(index) + text, row.prompt_log_probs + log_probs
        choice = {"index": index, "text": text, "logprobs": self._log_probs(index, log_probs)}
        return {**choice, "finish_reason": _reason(row)}

    def _beginning(self, index: int, row: RowStep) -> Iterator[dict[str, Any]]:
        if self._echo:
            log_probs = self._log_probs(index, row.prompt_log_probs)
            yield self._piece(index, {"text": self._prompt(index), "logprobs": log_probs})

    def _new(self, index: int, row: RowStep, text: int, tokens: int) -> dict[str, Any]:
        return {"text": row.text[text:], "logprobs": self._log_probs(index, row.log_probs[tokens:])}

    def _prompt(self, index: int) -> str:
        prompt = self._prompts[index // self._request.choices]
        return prompt if isinstance(prompt, str) else "".join(self._texts(prompt))

    def _log_probs(self, index: int, log_probs: Sequence[TokenLogProb]) -> dict[str, Any] | None:
        if self._request.likeliest is None:
            return None
        tokens = self._texts([entry.token for entry in log_probs])
        offsets = []
        for text in tokens:
            offsets.append(self._offsets.setdefault(index, 0))
            self._offsets[index] += len(text)
        return {
            "tokens": list(tokens),
            "token_logprobs": [None if entry.log_prob is None else _number(entry.log_prob) for entry in log_probs],
            "top_logprobs": [self._likeliest(entry) for entry in log_probs],
            "text_offset": offsets,
        }

    def _likeliest(self, chosen: TokenLogProb) -> dict[str, float] | None:
        """By text; the token itself is always among them."""
        if chosen.log_prob is None:
            return None
        ids = [token for token, _ in chosen.likeliest]
        texts = self._texts([*ids, chosen.token])
        values = [*(value for _, value in chosen.likeliest), chosen.log_prob]
        named: dict[str, float] = {}
        for text, value in zip(texts, values, strict=True):
            # Two tokens may have the same text; the likelier one comes first.
            named.setdefault(text, _number(value))
        return named


def _number(log_prob: float) -> float:
    """JSON has no infinity."""
    return max(log_prob, IMPOSSIBLE)


def _reason(row: RowStep) -> str | None:
    return None if row.finish_reason is None else REASONS.get(row.finish_reason)


def model_entry(name: str, words: str, base: str) -> dict[str, Any]:
    """A variant in the list of models."""
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "slim",
        "root": base,
        "description": words,
    }
