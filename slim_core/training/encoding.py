# SPDX-License-Identifier: Apache-2.0
"""Conversations to tokens, through the tokenizer's chat template, with the loss on answers that are to be learned.

The template writes the whole conversation once; which of its characters are answers is found out by writing it again
with marks in the answers' place. So the tokens are exactly those that the model sees in a chat, and no template needs
`{% generation %}` marks of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from ..inference.template import ensure_chat_template
from .data import Conversation, Message, Passage
from .errors import DataError, TrainingError, first_line
from .messages import THOUGHTS


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

    def encode(self, example: Conversation | Passage) -> Example:
        """Tokens and labels of one example.

        Raises:
            DataError: if the chat template refuses the conversation, leaves out a part of it or changes its answers,
                or if no token is left.
        """
        if isinstance(example, Passage):
            return self._passage(example)
        text, spans = self._learned_spans(example)
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        labels = [
            token if any(start < end_of and begin_of < end for begin_of, end_of in spans) else IGNORED
            for token, (start, end) in zip(encoded.input_ids, encoded.offset_mapping, strict=True)
        ]
        if set(labels) == {IGNORED}:
            raise DataError(
                f"{example.place}: the tokenizer makes no token of the answer, so there is nothing to learn; "
                "take the record out."
            )
        return Example(encoded.input_ids, labels, example.place)

    def _passage(self, passage: Passage) -> Example:
        """Plain text as in pretraining: no template, and the loss on every token."""
        begins = bool(self.tokenizer.bos_token) and passage.text.startswith(self.tokenizer.bos_token)
        ids = self.tokenizer(passage.text, add_special_tokens=not begins, verbose=False).input_ids
        if len(ids) < 2:
            raise DataError(
                f"{passage.place}: the text is a single token, which nothing comes before, so there is nothing to "
                "learn; take the record out."
            )
        return Example(ids, list(ids), passage.place)

    def closes_answers(self) -> bool:
        """Whether an answer ends with a token of its own, so that the model learns to stop."""
        messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        return not self._render(messages, (), "the template").rstrip().endswith("b")

    # -- the template --------------------------------------------------------------------------------------------

    def _write(self, conversation: Conversation, messages: list[Message], prompt: bool = False) -> str:
        return self._render(messages, conversation.tools, conversation.place, prompt)

    def _render(self, messages: list[Message], tools: Sequence[dict], place: str, prompt: bool = False) -> str:
        try:
            return self.tokenizer.apply_chat_template(
                messages, tools=list(tools) or None, tokenize=False, add_generation_prompt=prompt
            )
        except Exception as error:  # a template is a program: it may raise anything
            raise DataError(
                f"{place}: the model's chat template refuses this conversation ({first_line(error)}); "
                "change the record to what the template knows."
            ) from None

    # -- what is learned -----------------------------------------------------------------------------------------

    def _learned_spans(self, conversation: Conversation) -> tuple[str, list[Span]]:
        text = self._write(conversation, conversation.messages)
        self._check_read(conversation, text)
        answers = [i for i, message in enumerate(conversation.messages) if message["role"] == "assistant"]
        spans = self._spans_by_marks(conversation, text, answers)
        learned = [i for i in answers if i not in conversation.unlearned]
        if spans:
            return text, [span for i, span in zip(answers, spans, strict=True) if i in learned]
        return text, [self._span(conversation, text, i) for i in learned]

    def _spans_by_marks(self, conversation: Conversation, text: str, answers: list[int]) -> list[Span]:
        """Where the answers are, with the token that closes each; empty if they are not written as they stand."""
        messages = conversation.messages
        if any(_beside_content(messages[i]) for i in answers):
            return []
        marks = {i: f"SLIM{i}ANSWER{i}MARK" for i in answers}
        marked = [m | {"content": marks.get(i, m["content"])} for i, m in enumerate(messages)]
        rest = self._write(conversation, marked)
        between = []
        for mark in marks.values():
            if rest.count(mark) != 1:
                return []
            before, _, rest = rest.partition(mark)
            between.append(before)
        # What closes the last answer closes the others too, as far as it stands there.
        closing = rest.rstrip()
        for strip in (False, True):
            contents = [messages[i]["content"].strip() if strip else messages[i]["content"] for i in marks]
            spans, position = [], 0
            for before, answer, after in zip(between, contents, [*between[1:], rest], strict=True):
                begin = position + len(before)
                position = begin + len(answer)
                spans.append((begin, position + (len(closing) if after.startswith(closing) else 0)))
            written = "".join(b + a for b, a in zip(between, contents, strict=True)) + rest
            if written == text:
                return spans
        return []

    def _span(self, conversation: Conversation, text: str, index: int) -> Span:
        """Where one answer is that the template writes in a way of its own, with thoughts or calls for one.

        It begins where the template's prompt for it ends, and ends where what follows it begins.
        """
        messages = conversation.messages
        mark = f"SLIM{index}ANSWER{index}MARK"
        marked = [*messages[:index], {"role": "assistant", "content": mark}, *messages[index + 1 :]]
        before, found, after = self._write(conversation, marked).partition(mark)
        heads = ([before] if found else []) + [self._write(conversation, messages[:index], prompt=True)]
        begin = next((len(head) for head in heads if text.startswith(head)), None)
        alone = self._write(conversation, messages[: index + 1]).rstrip()
        end = None
        if found and text.endswith(after) and len(after) < len(text):
            closing = after.rstrip() if index == len(messages) - 1 else self._closing()
            end = len(text) - len(after) + (len(closing) if after.startswith(closing) else 0)
        elif text.startswith(alone):
            end = len(alone)
        if begin is None or end is None or end <= begin or _missing(messages[index], text[begin:end]):
            raise DataError(self._not_learned(conversation, index, alone, text[begin or 0 : end]))
        return begin, end

    def _closing(self) -> str:
        messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "SLIMANSWER"}]
        return self._render(messages, (), "the template").partition("SLIMANSWER")[2].rstrip()

    def _not_learned(self, conversation: Conversation, index: int, alone: str, written: str) -> str:
        """The sentence on an answer that does not stand in the text as it stands in the record."""
        message = conversation.messages[index]
        where, name = conversation.place, conversation.name(index)
        if index < len(conversation.messages) - 1 and not _missing(message, alone):
            return (
                f"{where}: the model's chat template drops or changes the earlier answer of {name} once others follow "
                "it, so that it cannot be learned there; give it weight 0, or split the conversation so that one ends "
                "with it."
            )
        lost = _missing(message, written)
        if lost in THOUGHTS or lost == "tool_calls":
            return (
                f"{where}: the model's chat template does not write the `{lost}` of {name}, so that they cannot be "
                "learned; take them out, or choose a base whose template writes them."
            )
        if lost is None:
            return (
                f"{where}: the model's chat template writes {name} unlike its own prompt for an answer, so that it "
                "cannot be told where the answer begins; give it weight 0, or choose a base with another template."
            )
        return (
            f"{where}: the model's chat template drops or changes a part of the answer of {name}, so that it cannot "
            "be learned; write it as the template does, or give it weight 0."
        )

    # -- what is read --------------------------------------------------------------------------------------------

    def _check_read(self, conversation: Conversation, text: str) -> None:
        """Whether the template writes all that the model is to read."""
        messages = conversation.messages
        with_tools = bool(conversation.tools) or any("tool_calls" in m or m["role"] == "tool" for m in messages)
        if with_tools and self.uses_fallback:
            raise DataError(
                f"{conversation.place}: the base has no chat template, and the plain one in its place has no form for "
                "tools; take them out, or choose a base whose template writes them."
            )
        for tool in conversation.tools:
            if tool["function"]["name"] not in text:
                raise DataError(
                    f"{conversation.place}: the model's chat template leaves out the tools; take them out of the "
                    "record, or choose a base whose template writes them."
                )
        for i, message in enumerate(messages):
            self._check_message(conversation, i, message, text)

    def _check_message(self, conversation: Conversation, index: int, message: Message, text: str) -> None:
        where, name = conversation.place, conversation.name(index)
        if message["role"] != "assistant" and self._leaves_out(conversation, index, text):
            what = "the system text" if message["role"] == "system" else f"{name} ({message['role']})"
            remedy = "put it into the first question" if message["role"] == "system" else "split the conversation"
            raise DataError(
                f"{where}: the model's chat template leaves out {what}; take it out, {remedy}, or choose a base whose "
                "template writes it."
            )
        if _missing_call(message, text):
            raise DataError(
                f"{where}: the model's chat template leaves out the `tool_calls` of {name}; take them out, or choose "
                "a base whose template writes them."
            )
        if message["role"] != "tool" and message.get("name", "") not in text:
            raise DataError(
                f"{where}: the model's chat template leaves out the `name` of {name}; take it out, or put it into "
                "`content`."
            )

    def _leaves_out(self, conversation: Conversation, index: int, text: str) -> bool:
        message = conversation.messages[index]
        content = message["content"].strip()
        # A question is in the text of nearly every template; what is there by accident, a short one may be.
        if not content or (message["role"] != "system" and len(content) > 20 and content in text):
            return False
        changed = list(conversation.messages)
        changed[index] = message | {"content": f"{message['content']} SLIM{index}READ"}
        return self._write(conversation, changed) == text


def _beside_content(message: Message) -> list[str]:
    """What an answer has beside its text."""
    return [key for key in (*THOUGHTS, "tool_calls") if key in message]


def _missing(message: Message, written: str) -> str | None:
    """What of an answer is not in the text that the template wrote, but for blanks; None if nothing is."""
    text = _squeezed(written)
    for key in ("content", *THOUGHTS):
        if _squeezed(message.get(key, "")) not in text:
            return key
    return "tool_calls" if _missing_call(message, written) else None


def _missing_call(message: Message, written: str) -> bool:
    return any(call["function"]["name"] not in written for call in message.get("tool_calls", ()))


def _squeezed(text: str) -> str:
    return "".join(text.split())
