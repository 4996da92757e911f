# SPDX-License-Identifier: Apache-2.0
"""Encoders of texts and conversations: a tokenizer in this process, or an untrusted one in a separate process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

from transformers import PreTrainedTokenizerBase


Messages = Sequence[dict[str, str]]


class Encoder(Protocol):
    """Encodes texts and conversations, for one thread at a time. Errors of the tokenizer or template are passed on
    unchanged.

    In `sandbox.TokenizerProcess` that is a ValueError; an EngineError says that it took too long, too much memory, or
    does not start.
    """

    def encode(self, text: str, special: bool = False) -> list[int]:
        """The token ids of a text; with `special`, including those that the tokenizer adds around any text."""
        ...

    def render(self, messages: Messages, template: str) -> str:
        """The text of a conversation."""
        ...

    def encode_chat(self, messages: Messages, template: str) -> list[int]:
        """The token ids of a conversation, up to where the answer begins, or with the beginning of an answer if that
        is the last message; text that people typed never becomes a control token.
        """
        ...

    def close(self) -> None:
        """Release its resources. It can still be used afterwards."""
        ...


class LocalEncoder:
    """A trusted tokenizer, used in this process."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    def encode(self, text: str, special: bool = False) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=special)

    def render(self, messages: Messages, template: str) -> str:
        text = self._tokenizer.apply_chat_template([*messages], chat_template=template, tokenize=False)
        return cast("str", text)  # a single conversation, not tokenised

    def encode_chat(self, messages: Messages, template: str) -> list[int]:
        begun = messages[-1]["role"] == "assistant"
        ids = self._tokenizer.apply_chat_template(
            [*messages],
            chat_template=template,
            add_generation_prompt=not begun,
            continue_final_message=begun,
            return_dict=False,
            sanitize_control_tokens=True,
        )
        return cast("list[int]", ids)  # a single conversation, tokenised, not as a dict

    def close(self) -> None:
        pass
