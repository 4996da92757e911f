# SPDX-License-Identifier: Apache-2.0
"""Conversations to tokens, through the tokenizer's chat template, with the loss on answers that are to be learned."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple, cast

from transformers import PreTrainedTokenizerBase

from ..base.template import ensure_chat_template
from .answers import Span, learned_spans
from .data import Conversation, PlainText
from .errors import DataError, TrainingError
from .omissions import check_read
from .writing import Writer


IGNORED = -100


class EncodedExample(NamedTuple):
    """One example as the model sees it.

    Attributes:
        input_ids: T token ids.
        labels: T ids; -100 for tokens without loss.
        place: where it stands in the data.
    """

    input_ids: list[int]
    labels: list[int]
    place: str


class ExampleEncoder:
    """Writes conversations the way the model reads them.

    Args:
        tokenizer: gets the fallback template if it has none, so that it is saved with the adapter.

    Attributes:
        uses_fallback: whether the tokenizer had no chat template.
        wrote: whether the template has written anything yet; it writes no plain text.

    Raises:
        TrainingError: if the tokenizer cannot say which characters a token stands for.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not tokenizer.is_fast:
            raise TrainingError(
                f"The tokenizer {type(tokenizer).__name__} does not say which characters a token stands for, which is "
                "needed to take the loss on answers only; convert it to a tokenizer.json."
            )
        self.tokenizer = tokenizer
        self.uses_fallback = not ensure_chat_template(tokenizer)
        self.wrote = False
        self._writer = Writer(tokenizer)

    def encode(self, example: Conversation | PlainText) -> EncodedExample:
        """Tokens and labels of one example.

        Raises:
            DataError: if the chat template refuses the conversation, leaves out a part of it or changes its answers,
                or if no token is left.
        """
        if isinstance(example, PlainText):
            return self._passage(example)
        self.wrote = True
        text = self._writer.write(example)
        check_read(example, text, self._writer, self.uses_fallback)
        spans = learned_spans(example, text, self._writer)
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        labels = [
            token if any(start < span.end and span.begin < end for span in spans) else IGNORED
            for token, (start, end) in zip(encoded.input_ids, encoded.offset_mapping, strict=True)
        ]
        self._close(labels, spans, encoded.offset_mapping)
        if set(labels) == {IGNORED}:
            raise DataError(
                f"{example.place}: the tokenizer turns the answer into no tokens, so there is nothing to learn; "
                "remove the record."
            )
        return EncodedExample(encoded.input_ids, labels, example.place)

    def _close(self, labels: list[int], spans: list[Span], offsets: list[tuple[int, int]]) -> None:
        """Close an answer as the template closes the last one. That is how it ends while it is being written; once
        other messages follow, a template may close it with another token, or with none.
        """
        for span in spans:
            after = next((i for i, (start, end) in enumerate(offsets) if start >= span.end and end > start), None)
            if not span.closed and after is not None and self.closing_token is not None:
                labels[after] = self.closing_token

    def _passage(self, passage: PlainText) -> EncodedExample:
        """Plain text as in pretraining: no template, and the loss on every token."""
        begins = bool(self.tokenizer.bos_token) and passage.text.startswith(self.tokenizer.bos_token)
        ids = self.tokenizer(passage.text, add_special_tokens=not begins, verbose=False).input_ids
        if len(ids) < 2:
            raise DataError(
                f"{passage.place}: the text is a single token with nothing before it, so there is nothing to learn; "
                "remove the record."
            )
        return EncodedExample(ids, list(ids), passage.place)

    @cached_property
    def closing_token(self) -> int | None:
        """The control token that closes an answer; None if none does."""
        token = self._writer.first_closing()
        return cast(int, self.tokenizer.convert_tokens_to_ids(token)) if token else None

    def closes_answers(self) -> bool:
        """Whether answers end with a token of their own, so that the model learns to stop."""
        return bool(self._writer.closing())
