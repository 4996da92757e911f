# SPDX-License-Identifier: Apache-2.0
"""Conversations to text, as the tokenizer's chat template writes them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import cast

from transformers import PreTrainedTokenizerBase

from ..outside.errors import first_line
from .data import Conversation, Message
from .errors import DataError


class Writer:
    """Writes with one chat template.

    Args:
        tokenizer: with a template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._closing: str | None = None

    def write(self, conversation: Conversation, messages: list[Message] | None = None, prompt: bool = False) -> str:
        """The text of a conversation.

        Args:
            conversation: says the tools and the place.
            messages: in place of its own.
            prompt: whether the text ends where an answer begins.

        Raises:
            DataError: if the template refuses it.
        """
        messages = conversation.messages if messages is None else messages
        return self._render(messages, list(conversation.tools), conversation.place, prompt)

    def with_changed(self, conversation: Conversation, index: int, message: Message) -> str | None:
        """The text of a conversation with another message in the place of one; None if the template refuses that."""
        messages = conversation.messages
        try:
            return self.write(conversation, [*messages[:index], message, *messages[index + 1 :]])
        except DataError:
            return None

    def closing(self) -> str:
        """The text with which the template closes an answer; empty if none."""
        if self._closing is None:
            messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "SLIMANSWER"}]
            self._closing = self._render(messages, [], "the template").partition("SLIMANSWER")[2].rstrip()
        return self._closing

    def first_closing(self) -> str:
        """The token that closes an answer, as text; empty if there is none."""
        ids = self._tokenizer(self.closing().lstrip(), add_special_tokens=False, verbose=False).input_ids
        special = bool(ids) and ids[0] in self._tokenizer.all_special_ids
        return str(self._tokenizer.convert_ids_to_tokens(ids[0])) if special else ""

    def _render(self, messages: list[Message], tools: list[dict], place: str, prompt: bool = False) -> str:
        failed: Exception | None = None
        for form in _forms(messages):
            try:
                return self._without_empty(form, tools, prompt, self._apply(form, tools, prompt))
            except Exception as error:  # a template is a program and may raise anything
                failed = failed or error
        assert failed is not None  # there is one form at least
        if (broken := self._broken()) is not None:
            raise DataError(
                f"{place}: the model's chat template cannot write any conversation ({broken}); repair the template of "
                "the base, or choose another base."
            ) from None
        raise DataError(
            f"{place}: the model's chat template refuses this conversation ({first_line(failed)}); "
            "change the record to a form the template accepts."
        ) from None

    def _broken(self) -> str | None:
        """Why the template cannot write even one question and its answer; None if it can."""
        try:
            self._apply([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], [], False)
        except Exception as error:  # a template is a program and may raise anything
            return first_line(error)
        return None

    def _without_empty(self, messages: list[Message], tools: list[dict], prompt: bool, text: str) -> str:
        """The text with null instead of empty content beside tool calls, if the template supports null."""
        empty = [bool(m.get("tool_calls")) and m["content"] == "" for m in messages]
        if not any(empty):
            return text
        null = [m | {"content": None} if e else m for m, e in zip(messages, empty, strict=True)]
        try:
            with_null = self._apply(null, tools, prompt)
        except Exception:  # for instance, it concatenates texts
            return text
        # Some templates write null as a word instead of nothing.
        return text if with_null.count("None") > text.count("None") else with_null

    def _apply(self, messages: list[Message], tools: list[dict], prompt: bool) -> str:
        text = self._tokenizer.apply_chat_template(
            messages, tools=[*tools] or None, tokenize=False, add_generation_prompt=prompt
        )
        return cast("str", text)  # a single conversation, not tokenised


def _forms(messages: list[Message]) -> Iterator[list[Message]]:
    """The conversation in the forms in which templates expect tool calls; most accept the first."""
    yield messages
    if any("tool_calls" in message for message in messages):
        yield [_with_text_arguments(message) for message in messages]


def _with_text_arguments(message: Message) -> Message:
    # As OpenAI has them, and templates that put them into a text as they are.
    if "tool_calls" not in message:
        return message
    calls = []
    for call in message["tool_calls"]:
        arguments = json.dumps(call["function"]["arguments"], ensure_ascii=False)
        calls.append(call | {"function": call["function"] | {"arguments": arguments}})
    return message | {"tool_calls": calls}


def without(message: Message, key: str) -> Message:
    """A message without one of its keys."""
    return {name: value for name, value in message.items() if name != key}
