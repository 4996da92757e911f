# SPDX-License-Identifier: Apache-2.0
"""Conversations to tokens, through the tokenizer's chat template, with the loss on answers that are to be learned.

The template writes the whole conversation once; which of its characters are answers is found out by writing it again
with marks in the answers' place. So the tokens are exactly those that the model sees in a chat, and no template needs
`{% generation %}` marks of its own.
"""

from __future__ import annotations

from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from ..inference.template import ensure_chat_template
from .data import Conversation, Message
from .errors import DataError, TrainingError, first_line


IGNORED = -100
Span = tuple[int, int]


class Example(NamedTuple):
    """One example as the model sees it.

    Attributes:
        input_ids: T token ids.
        labels: T ids; -100 where there is no loss.
        place: where it stands in the data.
    """

    input_ids: list[int]
    labels: list[int]
    place: str


class Encoder:
    """Writes conversations the way the model reads them.

    Args:
        tokenizer: gets the fallback template if it has none, so that it is saved with the adapter.

    Attributes:
        uses_fallback: whether the tokenizer had no chat template.

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

    def encode(self, conversation: Conversation) -> Example:
        """Tokens and labels of one conversation.

        Raises:
            DataError: if the chat template refuses the conversation or rewrites its answers, or if no token is left.
        """
        text, spans = self._learned_spans(conversation)
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        labels = [
            token if any(start < end_of and begin_of < end for begin_of, end_of in spans) else IGNORED
            for token, (start, end) in zip(encoded.input_ids, encoded.offset_mapping, strict=True)
        ]
        if set(labels) == {IGNORED}:
            raise DataError(
                f"{conversation.place}: the tokenizer makes no token of the answer, so there is nothing to learn; "
                "take the record out."
            )
        return Example(encoded.input_ids, labels, conversation.place)

    def closes_answers(self) -> bool:
        """Whether an answer ends with a token of its own, so that the model learns to stop."""
        messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        return not self._write(messages, "the template").rstrip().endswith("b")

    def _write(self, messages: list[Message], place: str, prompt: bool = False) -> str:
        try:
            return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
        except Exception as error:  # a template is a program: it may raise anything
            raise DataError(
                f"{place}: the model's chat template refuses this conversation ({first_line(error)}); "
                "change the record to what the template knows."
            ) from None

    def _learned_spans(self, conversation: Conversation) -> tuple[str, list[Span]]:
        text = self._write(conversation.messages, conversation.place)
        spans = self._spans_by_marks(conversation, text) or self._spans_by_prompts(conversation, text)
        if not spans:
            raise DataError(
                f"{conversation.place}: the model's chat template rewrites the answers, so that they cannot be told "
                "from the rest; write them the way the template does."
            )
        answers = [i for i, message in enumerate(conversation.messages) if message["role"] == "assistant"]
        return text, [s for i, s in zip(answers, spans, strict=True) if i not in conversation.unlearned]

    def _spans_by_marks(self, conversation: Conversation, text: str) -> list[Span]:
        """Where the answers are, with the token that closes each; empty if the template changes their text."""
        messages = conversation.messages
        marks = {i: f"SLIM{i}ANSWER{i}MARK" for i, m in enumerate(messages) if m["role"] == "assistant"}
        marked = [m | {"content": marks.get(i, m["content"])} for i, m in enumerate(messages)]
        rest = self._write(marked, conversation.place)
        between = []
        for mark in marks.values():
            if rest.count(mark) != 1:
                return []
            before, _, rest = rest.partition(mark)
            between.append(before)
        # What closes the last answer closes the others too, as far as it stands there.
        closing = rest.rstrip()
        for strip in (False, True):
            answers = [messages[i]["content"].strip() if strip else messages[i]["content"] for i in marks]
            spans, position = [], 0
            for before, answer, after in zip(between, answers, [*between[1:], rest], strict=True):
                begin = position + len(before)
                position = begin + len(answer)
                spans.append((begin, position + (len(closing) if after.startswith(closing) else 0)))
            written = "".join(b + a for b, a in zip(between, answers, strict=True)) + rest
            if written == text:
                return spans
        return []

    def _spans_by_prompts(self, conversation: Conversation, text: str) -> list[Span]:
        """The same for templates that rewrite answers, reasoning for one: each answer begins where its prompt ends."""
        spans = []
        for i, message in enumerate(conversation.messages):
            if message["role"] != "assistant":
                continue
            prompt = self._write(conversation.messages[:i], conversation.place, prompt=True)
            upto = self._write(conversation.messages[: i + 1], conversation.place).rstrip()
            if not (upto.startswith(prompt) and text.startswith(upto)):
                return []
            spans.append((len(prompt), len(upto)))
        return spans
