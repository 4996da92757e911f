# SPDX-License-Identifier: Apache-2.0
"""Whether a chat template writes everything that the model should read.

Templates silently skip what they do not know: a system text, tools, a name. To find out whether a part of a
conversation is used, the conversation is written without it: if the text stays the same, the template leaves the part
out.
"""

from __future__ import annotations

from .data import Conversation
from .errors import DataError
from .writing import Writer, without


LONG = 20  # characters that no text has by accident


def check_read(conversation: Conversation, text: str, writer: Writer, uses_fallback: bool) -> None:
    """Refuse a conversation if the template leaves something out that was read from the data.

    Args:
        conversation: in whole.
        text: as the template writes it.
        writer: of the template.
        uses_fallback: whether the template is our plain one.

    Raises:
        DataError: naming what is left out.
    """
    place, messages = conversation.place, conversation.messages
    called = any("tool_calls" in message or message["role"] == "tool" for message in messages)
    if uses_fallback and (conversation.tools or called):
        raise DataError(
            f"{place}: the base has no chat template, and the plain one in its place has no form for tools; remove "
            "them, or choose a base whose template writes them."
        )
    if conversation.tools and writer.write(conversation._replace(tools=())) == text:
        raise DataError(
            f"{place}: the model's chat template leaves out the tools; remove them from the record, or choose a base "
            "whose template writes them."
        )
    for i, message in enumerate(messages):
        _check_content(conversation, i, text, writer)
        # The name of a tool only says again whose result it is.
        for key, remedy in (
            ("tool_calls", "choose a base whose template writes it"),
            ("name", "put it into `content`"),
        ):
            if key not in message or (key == "name" and message["role"] == "tool"):
                continue
            if writer.with_changed(conversation, i, without(message, key)) == text:
                raise DataError(
                    f"{place}: the model's chat template leaves out the `{key}` of {conversation.name(i)}; remove it, "
                    f"or {remedy}."
                )


def _check_content(conversation: Conversation, index: int, text: str, writer: Writer) -> None:
    message = conversation.messages[index]
    role, content = message["role"], message["content"].strip()
    # Answers are checked when their spans are searched for. For a long question one check is enough.
    if role == "assistant" or not content or (role != "system" and len(content) > LONG and content in text):
        return
    marked = message | {"content": f"{message['content']} SLIM{index}READ"}
    if writer.with_changed(conversation, index, marked) != text:
        return
    left_out = "the system text" if role == "system" else f"{conversation.name(index)} ({role})"
    remedy = "put it into the first question" if role == "system" else "split the conversation"
    raise DataError(
        f"{conversation.place}: the model's chat template leaves out {left_out}; remove it, {remedy}, or choose a "
        "base whose template writes it."
    )
