# SPDX-License-Identifier: Apache-2.0
"""What a message says beside its text reaches the template, decides on the loss, or is refused."""

from __future__ import annotations

import json

import pytest

from slim_core.training import Columns, DataError
from slim_core.training.data import Conversation, to_conversations
from slim_core.training.files import Record


ASKED = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}
RESULT = {"role": "tool", "content": "7"}
FUNCTION = {"name": "add", "arguments": {"x": 3}}
CALL = {"type": "function", "function": FUNCTION}
AS_TEXT = {"name": "add", "arguments": '{"x": 3}'}
DESCRIBED = {"name": "add", "parameters": {"type": "object"}}
TOOL = {"type": "function", "function": DESCRIBED}


def converted(messages: list[dict], **columns) -> Conversation:
    (made,) = to_conversations([Record({"messages": messages} | columns, "a.jsonl, line 1")], Columns())
    return made


def called(**changes) -> list[dict]:
    return [ASKED, {"role": "assistant", "content": ""} | changes, RESULT, ANSWER]


# a message with a call, and the call as templates read it
CALLS = [
    ({"tool_calls": [CALL]}, CALL),
    ({"tool_calls": [CALL], "content": None}, CALL),
    ({"tool_calls": [CALL | {"id": "abc"}]}, CALL | {"id": "abc"}),
    ({"tool_calls": [{"type": "function", "function": AS_TEXT}]}, CALL),
    ({"tool_calls": [FUNCTION]}, CALL),
    ({"tool_calls": json.dumps([CALL])}, CALL),
    ({"function_call": AS_TEXT}, CALL),
    (
        {"tool_calls": [{"function": {"name": "now"}}]},
        {"type": "function", "function": {"name": "now", "arguments": {}}},
    ),
]


@pytest.mark.parametrize("changes,call", CALLS)
def test_calls_are_handed_to_the_template(changes, call):
    made = converted(called(**changes))
    assert made.messages == [ASKED, {"role": "assistant", "content": "", "tool_calls": [call]}, RESULT, ANSWER]


@pytest.mark.parametrize("role", ["tool", "function", "observation", "tool_response"])
def test_calls_and_results_of_sharegpt_are_read(role):
    made = converted(
        [
            {"from": "human", "value": "q"},
            {"from": "function_call", "value": json.dumps(FUNCTION)},
            {"from": role, "value": "7"},
            {"from": "gpt", "value": "a"},
        ]
    )
    assert made.messages == [ASKED, {"role": "assistant", "content": "", "tool_calls": [CALL]}, RESULT, ANSWER]


@pytest.mark.parametrize("column", ["tools", "functions"])
@pytest.mark.parametrize("tools", [[TOOL], [DESCRIBED], json.dumps([TOOL])])
def test_tools_are_handed_to_the_template(column, tools):
    assert converted([ASKED, ANSWER], **{column: tools}).tools == (TOOL,)


@pytest.mark.parametrize("tools", [None, [], "", "[]", " "])
def test_no_tools_are_none(tools):
    assert converted([ASKED, ANSWER], tools=tools).tools == ()


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking", "name"])
def test_thoughts_and_names_are_handed_to_the_template(key):
    assert converted([ASKED, ANSWER | {key: "six"}]).messages[1] == ANSWER | {key: "six"}
    assert converted([ASKED, ANSWER | {key: None}]).messages[1] == ANSWER


@pytest.mark.parametrize("key", ["weight", "train", "training", "loss"])
@pytest.mark.parametrize(
    "value,unlearned", [(v, {1}) for v in (0, False, 0.0)] + [(v, set()) for v in (1, True, None)]
)
def test_every_flag_decides_on_the_loss(key, value, unlearned):
    made = converted([ASKED | {key: None}, ANSWER | {key: value}, ASKED | {key: False}, ANSWER])
    assert made.unlearned == unlearned
    assert made.messages == [ASKED, ANSWER, ASKED, ANSWER]


# messages, columns, what the sentence says
BAD = [
    (called(tool_calls="add"), {}, "message 2 of `messages`: `tool_calls`: this is not valid JSON"),
    (called(tool_calls={"name": "add"}), {}, "message 2 of `messages`: `tool_calls` must be a list of calls"),
    (called(tool_calls=[{"id": 3}]), {}, "message 2 of `messages`: call 1 of `tool_calls` must be a call such as"),
    (
        called(tool_calls=[{"name": "add", "arguments": "{x"}]),
        {},
        "`arguments`: this is not valid JSON .*; they must be one JSON",
    ),
    (called(tool_calls=[{"name": "add", "arguments": [1]}]), {}, r"`arguments` must be an object, not \[1\]"),
    (called(tool_calls=[CALL], function_call=FUNCTION), {}, "has both `tool_calls` and `function_call`"),
    (
        [ASKED | {"tool_calls": [CALL]}, ANSWER],
        {},
        "message 1 of `messages` .user. has `tool_calls`, but only answers",
    ),
    ([ASKED | {"thinking": "x"}, ANSWER], {}, "message 1 of `messages` .user. has `thinking`, but only answers"),
    ([ASKED, ANSWER | {"reasoning_content": ["x"]}], {}, "message 2 of `messages`: `reasoning_content` must be text"),
    ([ASKED, ANSWER | {"thinking": "x", "reasoning": "y"}], {}, "has two different thoughts, `reasoning` and"),
    ([ASKED, ANSWER | {"name": 3}], {}, "message 2 of `messages`: `name` must be text but is 3"),
    ([ASKED, ANSWER | {"images": ["x.png"]}], {}, "message 2 of `messages` .assistant. has `images`, which cannot be"),
    ([ASKED, ANSWER | {"refusal": "No."}], {}, "has `refusal`, which cannot be trained on"),
    ([ASKED, ANSWER | {"prefix": True}], {}, "has `prefix`, which cannot be trained on"),
    ([ASKED, ANSWER | {"channel": "analysis"}], {}, 'has the channel "analysis", .*, only "final"; remove the record'),
    ([ASKED, ANSWER | {"recipient": "browser"}], {}, 'has the recipient "browser", which cannot be trained on'),
    ([ASKED, ANSWER | {"end_turn": False}], {}, "has the end_turn false, which cannot be trained on, only true"),
    *(
        ([ASKED, ANSWER | {key: value}], {}, f"has `{key}`, which may say whether an answer is learned, .* `weight` 1")
        for key, value in (
            ("mask", True),
            ("is_masked", False),
            ("loss_mask", [0, 1]),
            ("loss_scale", 0.5),
            ("trainable", False),
            ("train_on", 1),
            ("ignore", True),
            ("compute_loss", 0),
        )
    ),
    ([ASKED, ANSWER], {"weight": 0}, "line 1: it has `weight`, which may say whether an answer is learned"),
    ([ASKED, ANSWER], {"weight": "0"}, "line 1: it has `weight`, which may say whether an answer is learned"),
    ([ASKED, ANSWER], {"sample_weight": 0.5}, "line 1: it has `sample_weight`, which may say"),
    ([ASKED, ANSWER], {"images": ["x.png"]}, "line 1: it has `images`, which cannot be trained on; remove the record"),
    ([ASKED, ANSWER], {"label": False}, "line 1: `label` is false, so its answer is marked as a bad one; remove"),
    (
        [ASKED, ANSWER | {"parts": [{"text": "y"}]}],
        {},
        "message 2 of `messages` has `content` and `parts`, which diff",
    ),
    ([ASKED, ANSWER | {"train": "yes"}], {}, 'message 2 of `messages` has the train "yes"; it must be 1 or true'),
    ([ASKED, ANSWER | {"loss": 0.5}], {}, "message 2 of `messages` has the loss 0.5; it must be 1 or true"),
    ([ASKED | {"train": True}, ANSWER], {}, "message 1 of `messages` .user. has the train true, but only answers"),
    ([ASKED, ANSWER | {"train": True, "weight": 0}], {}, "has `weight` and `train`, which contradict; keep one"),
    ([ASKED, ANSWER | {"train": False}], {}, "every answer of `messages` has weight 0, so there is nothing to learn"),
    (
        [RESULT, ANSWER],
        {},
        "must alternate between user .or tool, after an answer. and assistant",
    ),
    ([ASKED, RESULT, ANSWER], {}, "must alternate"),
    ([ASKED, ANSWER, RESULT], {}, "must end with an answer"),
    ([ASKED, ANSWER], {"tools": "add"}, "`tools`: this is not valid JSON .*; it must be a list of tools such as"),
    ([ASKED, ANSWER], {"tools": TOOL}, "`tools` must be a list of tools such as"),
    ([ASKED, ANSWER], {"tools": ["add"]}, 'tool 1 of `tools` must be described as in .*, not as "add"'),
    ([ASKED, {"role": "function_call", "content": "add"}], {}, "a function_call must be written as"),
]


@pytest.mark.parametrize("messages,columns,sentence", BAD, ids=[str(i) for i in range(len(BAD))])
def test_what_cannot_be_honoured_is_refused_with_its_place(messages, columns, sentence):
    with pytest.raises(DataError, match=sentence) as caught:
        converted(messages, **columns)
    assert str(caught.value).startswith("a.jsonl, line 1: ") and "\n" not in str(caught.value)


def test_what_changes_nothing_is_no_reason_to_refuse():
    notes = {"channel": "final", "recipient": "all", "end_turn": True, "mask": None, "training_data": "web", "id": 4}
    columns = {"weight": 1, "train": "true", "label": True, "images": [], "body_weight": 70, "split": "train"}
    assert len(converted([ASKED, ANSWER | notes], **columns).messages) == 2


def test_parts_of_a_text_may_be_the_content_as_gemini_has_it():
    contents = [{"role": "user", "parts": [{"text": "What"}, {"text": " is it?"}]}]
    contents += [{"role": "model", "parts": [{"text": "A dog."}]}]
    record = Record({"contents": contents, "systemInstruction": {"parts": [{"text": "Be brief."}]}}, "a.jsonl, line 1")
    (made,) = to_conversations([record], Columns())
    assert [m["content"] for m in made.messages] == ["Be brief.", "What is it?", "A dog."]


def test_a_long_conversation_in_a_wrong_order_is_not_listed_in_whole():
    with pytest.raises(DataError, match=r"not (user, ){8}…\."):
        converted([ASKED] * 300 + [ANSWER])


def test_several_results_may_follow_an_answer():
    made = converted([ASKED, ANSWER | {"tool_calls": [CALL, CALL]}, RESULT, RESULT, ANSWER])
    assert [m["role"] for m in made.messages] == ["user", "assistant", "tool", "tool", "assistant"]
