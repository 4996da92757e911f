# SPDX-License-Identifier: Apache-2.0
"""From messages of a record, in the usual forms, to the form that chat templates read.

Every part of a message is used or refused, never skipped: without its tool call, an example would teach something
else.
"""

from __future__ import annotations

import re
from typing import Any

from .errors import DataError
from .names import named
from .parsing import as_json, parse_json
from .tools import CALL_KEYS, call_of_function, read_calls


Message = dict[str, Any]
NOTHING: tuple[Any, ...] = (None, "", [], {})
ROLES = {
    "system": ("system", "developer"),
    "user": ("user", "human", "prompter"),
    "assistant": ("assistant", "gpt", "model", "bot", "chatgpt", "ai", "function_call"),
    "tool": ("tool", "function", "observation", "tool_response"),
}
ROLE_OF = {name: role for role, names in ROLES.items() for name in names}
# Names of one flag, whose values are 0 and 1: whether an answer is learned, or only read.
FLAGS = ("weight", "train", "training", "loss")
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
# Templates that know them write them; the others are noticed where the text is written.
PASSED_ON = ("name", "tool_call_id")
# Gemini has a list of parts.
CONTENTS = ("content", "value", "parts")
READ = frozenset({"role", "from", *CONTENTS, *FLAGS, *THOUGHTS, *PASSED_ON, *CALL_KEYS})
# They change what an answer says or which part of it is learned.
MEDIA = ("image", "images", "audio", "audios", "video", "videos")
REFUSED = (*MEDIA, "refusal", "prefix", "train_detail")
# So do these, unless they have these values.
USUAL = {"channel": "final", "recipient": "all", "end_turn": True, "eot": True, "eos": True}
# Other names that say what is learned: `loss_mask`, `is_masked`, `trainable`, `sample_weight`.
LEARNING = re.compile(
    r"(?:(?:is|do|no|to|compute|sample|example|instance|answer|assistant|label|loss)_)*(?:un)?"
    r"(?:mask(?:s|ed)?|train(?:able|ed|_on)?|learn(?:able|ed)?|loss(?:_scale)?|weights?|ignored?|excluded?|skip(?:ped)?)",
    re.IGNORECASE,
)
TEXT_PARTS = ("text", "input_text", "output_text")
MOST_TURNS = 8  # that a sentence lists
EXAMPLE = '[{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]'


def read_messages(value: Any, name: str, place: str) -> list[Message]:
    """The messages of a column.

    Args:
        value: a list, or JSON of one, as a cell of a CSV file holds it.
        name: of the column.
        place: of the record.

    Returns:
        Each with `role` (system, user, assistant or tool) and `content`, answers with `weight` where one is given.

    Raises:
        DataError: if one of them cannot be read.
    """
    if isinstance(value, str):
        value = parse_json(value, f"{place}: `{name}`", f"it must be a list of messages such as {EXAMPLE}")
    if not isinstance(value, list) or not value:
        raise DataError(f"{place}: `{name}` must be a list of messages such as {EXAMPLE}.")
    return [_message(m, f"{place}: message {i} of `{name}`") for i, m in enumerate(value, 1)]


def _message(value: Any, place: str) -> Message:
    role, content = _role_and_content(value, place)
    check_understood({key: v for key, v in value.items() if key not in READ}, f"{place} ({role})")
    message: Message = {"role": role, "content": content}
    message |= {key: _text_of(value[key], key, place) for key in (*THOUGHTS, *PASSED_ON) if value.get(key)}
    if str(value.get("role") or value.get("from")).lower() == "function_call":
        message |= {"content": "", "tool_calls": [call_of_function(content, place)]}
    elif calls := read_calls(value, place):
        message["tool_calls"] = calls
    thoughts = [key for key in THOUGHTS if key in message]
    if len({message[key] for key in thoughts}) > 1:
        raise DataError(f"{place} has two different thoughts, `{thoughts[0]}` and `{thoughts[1]}`; keep one.")
    only = [key for key in ("tool_calls", *thoughts) if key in message]
    if role != "assistant" and only:
        raise DataError(f"{place} ({role}) has `{only[0]}`, but only answers have; move it to the answer.")
    if role in ("user", "assistant") and not message["content"].strip() and not only:
        raise DataError(f"{place} ({role}) has no text in `content`; fill it in or remove the record.")
    return message | _weight(value, role, place)


def check_understood(values: dict[str, Any], place: str, refused: tuple[str, ...] = REFUSED) -> None:
    """Refuse what would change the meaning of an example if it were passed over.

    Args:
        values: the keys of a message, or the columns of a record, that are not read.
        place: where they stand.
        refused: names whose values cannot be honoured.

    Raises:
        DataError: for the first such key.
    """
    for key, value in values.items():
        if value in NOTHING or value == USUAL.get(key):
            continue
        if key in refused and value is not False:
            raise DataError(f"{place} has `{key}`, which cannot be trained on; remove the record.")
        if key in USUAL and refused is REFUSED:
            raise DataError(
                f"{place} has the {key} {as_json(value)}, which cannot be trained on, only {as_json(USUAL[key])}; "
                "remove the record."
            )
        says_learned = key in FLAGS and _is_one(value)
        if LEARNING.fullmatch(key) and not says_learned and (_is_number(value) or isinstance(value, list)):
            raise DataError(
                f"{place} has `{named(key)}`, which may say whether an answer is learned, but is not known here; give "
                "answers `weight` 1 (learned) or 0 (read, but not learned), or remove it."
            )


def _is_number(value: Any) -> bool:
    """Whether a value is a number or a truth value, or a cell of a CSV file is one."""
    if not isinstance(value, str):
        return isinstance(value, int | float)  # a truth value is an int too
    return re.fullmatch(r"\s*(?:[-+]?\d+(?:\.\d*)?|true|false)\s*", value, re.IGNORECASE) is not None


def _is_one(value: Any) -> bool:
    text = value.strip().lower() if isinstance(value, str) else value
    return text in (1, "1", "1.0", "true")


def _role_and_content(value: Any, place: str) -> tuple[str, str]:
    if not isinstance(value, dict):
        raise DataError(f"{place} must have `role` and `content`, or `from` and `value`, but is {as_json(value)}.")
    keys = [_only(value, names, place) for names in (("role", "from"), CONTENTS)]
    if keys[0] is None:
        raise DataError(f"{place} must have `role` and `content`, or `from` and `value`; it has {_keys(value)}.")
    raw_role = value[keys[0]]
    role = ROLE_OF.get(raw_role.lower()) if isinstance(raw_role, str) else None
    if role is None:
        raise DataError(f"{place} has the role {as_json(raw_role)}; it must be one of {', '.join(ROLES)}.")
    if keys[1] is not None:
        return role, content_text(value[keys[1]], f"{place} ({role})", keys[1])
    if value.keys() & {*CONTENTS} or any(value.get(key) for key in CALL_KEYS):
        return role, ""
    raise DataError(f"{place} has `{keys[0]}` but no `content`; add it or remove the record.")


def _only(value: dict[str, Any], names: tuple[str, ...], place: str) -> str | None:
    """Which of several alternative names is present."""
    present = [name for name in names if value.get(name) is not None]
    if any(value[name] != value[present[0]] for name in present[1:]):
        raise DataError(f"{place} has `{present[0]}` and `{present[1]}`, which differ; keep one.")
    return present[0] if present else None


def _keys(value: dict[str, Any]) -> str:
    return ", ".join(f"`{key}`" for key in value) or "neither"


def content_text(value: Any, place: str, name: str) -> str:
    """The text of a message, which may be given in parts. None counts as empty.

    Raises:
        DataError: if it is not text.
    """
    if value is None or isinstance(value, str):
        return value or ""
    if not isinstance(value, list):
        raise DataError(f"{place}: `{name}` must be text but is {as_json(value)} ({type(value).__name__}).")
    texts = []
    for number, part in enumerate(value, 1):
        kind = part.get("type", "text") if isinstance(part, dict) else None
        if kind in TEXT_PARTS and isinstance(part.get("text"), str):
            texts.append(part["text"])
            continue
        if kind in TEXT_PARTS:
            raise DataError(f"{place}: part {number} of `{name}` has no `text`; fill it in or remove the record.")
        description = f"of the type {as_json(kind)}" if kind is not None else as_json(part)
        raise DataError(
            f"{place}: part {number} of `{name}` is {description}, but only text can be trained on, as "
            '{"type": "text", "text": "…"}; remove the record.'
        )
    return "".join(texts)


def _text_of(value: Any, key: str, place: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{place}: `{key}` must be text but is {as_json(value)}.")
    return value


def _weight(value: dict[str, Any], role: str, place: str) -> dict[str, int]:
    weights = {key: value[key] for key in FLAGS if value.get(key) is not None}
    for key, weight in weights.items():
        # `False` and `0.0` are 0 too.
        if not isinstance(weight, int | float) or weight not in (0, 1):
            raise DataError(
                f"{place} has the {key} {as_json(weight)}; it must be 1 or true (learned), or 0 or false (read, but "
                "not learned)."
            )
        if role != "assistant" and weight:
            raise DataError(
                f"{place} ({role}) has the {key} {as_json(weight)}, but only answers are learned; remove it."
            )
    if len({int(weight) for weight in weights.values()}) > 1:
        raise DataError(f"{place} has {' and '.join(f'`{key}`' for key in weights)}, which contradict; keep one.")
    return {"weight": int(next(iter(weights.values())))} if weights and role == "assistant" else {}


def check_order(messages: list[Message], place: str) -> None:
    """Check that turns alternate and end with an answer. Tool results take the place of a question.

    Raises:
        DataError: if they do not.
    """
    roles = [message["role"] for message in messages]
    if "system" in roles[1:]:
        raise DataError(f"{place} has a system message after the first message; move it to the front.")
    turns = roles[1:] if roles[0] == "system" else roles
    if turns[-1:] != ["assistant"]:
        raise DataError(f"{place} must end with an answer (role assistant); add one or cut what follows the last.")
    # Several results follow one answer where it has called several tools.
    merged = [role for i, role in enumerate(turns) if role != "tool" or turns[i - 1 : i] != ["tool"]]
    alternates = all(role == "assistant" if i % 2 else role in ("user", "tool") for i, role in enumerate(merged))
    if merged[0] != "user" or len(merged) % 2 or not alternates:
        raise DataError(
            f"{place} must alternate between user (or tool, after an answer) and assistant, beginning with user, not "
            f"{_shortened(turns)}."
        )


def _shortened(turns: list[str]) -> str:
    more = ", …" if len(turns) > MOST_TURNS else ""
    return f"{', '.join(turns[:MOST_TURNS])}{more}"
