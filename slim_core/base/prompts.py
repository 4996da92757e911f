# SPDX-License-Identifier: Apache-2.0
"""Conversations to tokens. What people type is text: it never becomes a control token."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from functools import cached_property, partial
from typing import cast

from transformers import PreTrainedTokenizerBase

from ..outside.errors import first_line
from .encoder import Encoder, LocalEncoder
from .errors import EngineError
from .messages import Message
from .template import ensure_chat_template


# All control characters (C0 and C1) except tab and line feed.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
SYSTEM_MARK = "SLIMSYSTEMMARK"


def clean_text(text: str) -> str:
    """Text that every tokenizer can read: line feeds as line ends, no control characters, no lone surrogates.

    Halves of a surrogate pair, which broken clients send, are joined if both are there and replaced otherwise.
    """
    joined = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return CONTROL.sub("", joined.replace("\r\n", "\n").replace("\r", "\n"))


class Prompts:
    """Writes conversations the way the model reads them.

    Args:
        tokenizer: gets the fallback template if it has none.
        encoder: what uses the tokenizer on texts; None for this process. A visitor's is used in a sandbox.

    Attributes:
        encoder: the one that is used.
        has_template: whether the tokenizer brought a chat template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, encoder: Encoder | None = None) -> None:
        self.tokenizer = tokenizer
        self.encoder = encoder or LocalEncoder(tokenizer)
        self.has_template = ensure_chat_template(tokenizer, partial(self._ids, special=True))
        # A tokenizer changes its own settings while it encodes, so two threads must not use it at once.
        self._lock = threading.Lock()

    def try_out(self) -> None:
        """Render the standard conversations, so that a template that never ends is noticed before it is needed.

        Raises:
            EngineError: if it takes too long.
        """
        _ = self.closing_token, self._takes_system

    def close(self) -> None:
        """End the process of a visitor's tokenizer."""
        with self._lock:
            self.encoder.close()

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """The token ids of a conversation, up to where the answer begins, or where it is to go on.

        If the last message is the model's, it is the beginning of the answer; an empty one is left out. A special
        token that someone typed is read as the characters it is written with. A system message that the template
        refuses or drops goes in front of the first user message.

        Raises:
            EngineError: if there is nothing to answer or the template refuses the conversation.
        """
        written = [{"role": message.role, "content": clean_text(message.content)} for message in messages]
        asked = written
        if written and written[-1]["role"] == "assistant":
            asked, begun = written[:-1], written[-1]["content"]
            # Most vocabularies write a space together with the word after it.
            written = [*asked, {"role": "assistant", "content": begun.rstrip(" ")}] if begun.strip() else asked
        if not asked or asked[-1]["role"] != "user" or not asked[-1]["content"].strip():
            raise EngineError("There is no question to answer: write a message.")
        if written[0]["role"] == "system":
            if not written[0]["content"].strip():
                written = written[1:]
            elif not self._takes_system:
                written = _merged_system(written)
        with self._lock:
            try:
                ids = self.encoder.encode_chat(written, self.tokenizer.get_chat_template())
            except EngineError:
                raise
            except Exception as error:  # a template is a program and may raise anything
                raise EngineError(
                    f"The model's chat template refuses this conversation ({first_line(error)}): change it to a form "
                    "the template accepts."
                ) from None
        if not ids:
            raise EngineError(
                "The model's chat template turns this conversation into empty text: choose another model."
            )
        return ids

    def encode_plain(self, text: str) -> list[int]:
        """The token ids of plain text, including those that the tokenizer adds around any text.

        Raises:
            EngineError: if it is empty.
        """
        with self._lock:
            ids = self._ids(clean_text(text), special=True)
        if not ids:
            raise EngineError("There is no text to continue: write some.")
        return ids

    def encode_passage(self, before: Sequence[Message] | str, words: str) -> tuple[list[int], list[int]]:
        """The token ids of words and of what comes before them.

        After plain text, the words are split off as in lm-evaluation-harness: spaces at the end of the text belong to
        the words, and text and words are encoded together; what follows the text's own number of tokens are the words.
        Words with nothing before them follow the token that begins or ends texts, or else their own first token.

        Args:
            before: a conversation up to where the answer begins, or plain text.
            words: the text that follows it.

        Raises:
            EngineError: if there are no words, or nothing can come before them.
        """
        words = clean_text(words)
        if not isinstance(before, str):
            first = self.encode(before)
            with self._lock:
                ids = self._ids(words)
        elif before.strip():
            text = clean_text(before)
            whole = self.encode_plain(text + words)
            first = self.encode_plain(text.rstrip())
            ids = whole[len(first) :]
        else:
            with self._lock:
                ids = self._ids(before + words)
            start = self.tokenizer.bos_token_id
            start = self.tokenizer.eos_token_id if start is None else start
            first, ids = ([start], ids) if start is not None and ids[:1] != [start] else (ids[:1], ids[1:])
        if not first or not ids:
            raise EngineError("There are no words to read: write some.")
        return first, ids

    @cached_property
    def _takes_system(self) -> bool:
        """Whether the template writes a system message; some refuse it, some silently leave it out."""
        messages = [{"role": "system", "content": SYSTEM_MARK}, {"role": "user", "content": "a"}]
        return SYSTEM_MARK in self._rendered(messages)

    def _rendered(self, messages: list[dict[str, str]]) -> str:
        """The text of a conversation; "" if the template refuses it. Raises EngineError if it takes too long."""
        with self._lock:
            try:
                return self.encoder.render(messages, self.tokenizer.get_chat_template())
            except EngineError:
                raise
            except Exception:
                return ""

    @cached_property
    def closing_token(self) -> int | None:
        """The control token with which the template closes an answer; None if there is none.

        It may differ from the tokenizer's end token, as `<|im_end|>` often does.
        """
        mark = "SLIMANSWERMARK"
        messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": mark}]
        _, separator, after = self._rendered(messages).partition(mark)
        if not separator or not after:
            return None
        with self._lock:
            ids = self._ids(after)
        return ids[0] if ids and ids[0] in self.tokenizer.all_special_ids else None

    def _ids(self, text: str, special: bool = False) -> list[int]:
        try:
            return self.encoder.encode(text, special)
        except EngineError:
            raise
        except Exception as error:
            raise EngineError(
                f"The model's tokenizer cannot encode a text ({first_line(error)}); choose another model."
            ) from None

    def token_texts(self, ids: Sequence[int]) -> tuple[str, ...]:
        """The text of each token by itself; partial characters are shown as such, special tokens by name."""
        return tuple(self._token_text(token) for token in ids)

    def _token_text(self, token: int) -> str:
        if token not in self._texts:
            special = token in self.tokenizer.all_special_ids
            if special or not self._before:
                self._texts[token] = cast("str | None", self.tokenizer.convert_ids_to_tokens(token)) or ""
            else:
                # Decoded after another token, since decoders strip the space of the first one.
                whole = self._decoded([*self._before, token])
                self._texts[token] = whole[len(self._before_text) :]
        return self._texts[token]

    @cached_property
    def _texts(self) -> dict[int, str]:
        return {}

    @cached_property
    def _before(self) -> list[int]:
        with self._lock:
            return self._ids("a")[-1:]

    @cached_property
    def _before_text(self) -> str:
        return self._decoded(self._before)

    def _decoded(self, ids: list[int]) -> str:
        return cast("str", self.tokenizer.decode(ids, clean_up_tokenization_spaces=False))  # a single text


def _merged_system(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    system, rest = messages[0]["content"], messages[1:]
    first = {"role": rest[0]["role"], "content": f"{system}\n\n{rest[0]['content']}"}
    return [first, *rest[1:]]
