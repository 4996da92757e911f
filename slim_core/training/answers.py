# SPDX-License-Identifier: Apache-2.0
"""Finding the answers in the text that a chat template has written.

Which of its characters are answers is found out by writing the conversation again with marks in the answers' place. So
the tokens are exactly those that the model sees in a chat, and no template needs `{% generation %}` marks of its own.
"""

from __future__ import annotations

from typing import NamedTuple

from .data import Conversation
from .errors import DataError
from .messages import THOUGHTS
from .writing import Writer, without


BESIDE = (*THOUGHTS, "tool_calls")  # what an answer may have besides its text


class Span(NamedTuple):
    """An answer in the text.

    Attributes:
        begin, end: first character, and last + 1. What closes it is within.
        closed: whether what closes it stands there. A template may close earlier answers otherwise than the last one,
            or not at all.
    """

    begin: int
    end: int
    closed: bool = True


def learned_spans(conversation: Conversation, text: str, writer: Writer) -> list[Span]:
    """The answers that are learned, each with the token that closes it.

    Args:
        conversation: in whole.
        text: as the template writes it.
        writer: of the template.

    Raises:
        DataError: if one of them is not in the text exactly as in the record.
    """
    answers = [i for i, message in enumerate(conversation.messages) if message["role"] == "assistant"]
    spans = _all_by_marks(conversation, text, writer, answers)
    learned = [i for i in answers if i not in conversation.unlearned]
    if spans:
        return [span for i, span in zip(answers, spans, strict=True) if i in learned]
    return [_one(conversation, text, writer, i) for i in learned]


def _all_by_marks(conversation: Conversation, text: str, writer: Writer, answers: list[int]) -> list[Span]:
    """All at once, as most templates allow; empty if the template writes an answer in a way of its own."""
    messages = conversation.messages
    if any(key in messages[i] for i in answers for key in BESIDE):
        return []
    marks = {i: _mark(i) for i in answers}
    rest = writer.write(conversation, [m | {"content": marks.get(i, m["content"])} for i, m in enumerate(messages)])
    between = []
    for mark in marks.values():
        if rest.count(mark) != 1:
            return []
        before, _, rest = rest.partition(mark)
        between.append(before)
    # The text that closes the last answer closes the others too, as far as it is present.
    closing, first = rest.rstrip(), writer.first_closing()
    for strip in (False, True):
        contents = [messages[i]["content"].strip() if strip else messages[i]["content"] for i in marks]
        spans, position = [], 0
        for before, answer, after in zip(between, contents, [*between[1:], rest], strict=True):
            begin = position + len(before)
            position = begin + len(answer)
            spans.append(_closed(begin, position, after, closing, first))
        if "".join(b + a for b, a in zip(between, contents, strict=True)) + rest == text:
            return spans
    return []


def _one(conversation: Conversation, text: str, writer: Writer, index: int) -> Span:
    """An answer that the template writes in a special way, for instance with thoughts or calls.

    It begins where the template's prompt for it ends, and ends where what follows it begins.
    """
    messages = conversation.messages
    plain = {"role": "assistant", "content": _mark(index)}
    # A template may require the call to which a result belongs.
    before, separator, after = (writer.with_changed(conversation, index, plain) or "").partition(_mark(index))
    heads = ([before] if separator else []) + [writer.write(conversation, messages[:index], prompt=True)]
    begin = next((len(head) for head in heads if text.startswith(head)), None)
    alone = writer.write(conversation, messages[: index + 1]).rstrip()
    end, closed = None, True
    if separator and text.endswith(after) and len(after) < len(text):
        closing = after.rstrip() if index == len(messages) - 1 else writer.closing()
        _, end, closed = _closed(0, len(text) - len(after), after, closing, writer.first_closing())
    elif text.startswith(alone):
        # A call may be closed by another token than a text.
        end = len(alone)
    # The prompt may open a thought that the answer continues.
    previous = writer.write(conversation, messages[:index])
    lost = _lost(conversation, index, writer, text[len(previous) if text.startswith(previous) else begin or 0 : end])
    if begin is None or end is None or end <= begin or lost:
        raise DataError(_why_not(conversation, index, writer, alone, lost))
    return Span(begin, end, closed)


def _closed(begin: int, end: int, after: str, closing: str, first: str) -> Span:
    """An answer with as much of what closes the last one as follows it: all of it, or its first token."""
    ending = next((mark for mark in (closing, first) if mark and after.startswith(mark)), "")
    return Span(begin, end + len(ending), bool(ending) or not closing)


def _why_not(conversation: Conversation, index: int, writer: Writer, alone: str, lost: str | None) -> str:
    place, name = conversation.place, conversation.name(index)
    ending = conversation._replace(messages=conversation.messages[: index + 1])
    if index < len(conversation.messages) - 1 and not _lost(ending, index, writer, alone):
        return (
            f"{place}: the model's chat template drops or changes the answer of {name} when other messages follow it, "
            "so it cannot be learned; give it weight 0, or split the conversation so that one ends with it."
        )
    if lost in BESIDE:
        return (
            f"{place}: the model's chat template does not write the `{lost}` of {name}, so it cannot be learned; "
            "remove it, or choose a base whose template writes it."
        )
    if lost is None:
        return (
            f"{place}: the model's chat template writes {name} differently from its own generation prompt, so the "
            "beginning of the answer cannot be found; give it weight 0, or choose a base with another template."
        )
    return (
        f"{place}: the model's chat template drops or changes a part of the answer of {name}, so it cannot be "
        "learned; write it as the template does, or give it weight 0."
    )


def _lost(conversation: Conversation, index: int, writer: Writer, written: str) -> str | None:
    """The part of an answer that is missing from the rendered text, ignoring whitespace; None if nothing is."""
    message = conversation.messages[index]
    text = _squeezed(written)
    for key in ("content", *THOUGHTS):
        if _squeezed(message.get(key, "")) not in text:
            return key
    whole = writer.write(conversation)
    other_fields = [key for key in BESIDE if key in message]
    return next(
        (k for k in other_fields if writer.with_changed(conversation, index, without(message, k)) == whole), None
    )


def _mark(index: int) -> str:
    return f"SLIM{index}ANSWER{index}MARK"


def _squeezed(text: str) -> str:
    return "".join(text.split())
