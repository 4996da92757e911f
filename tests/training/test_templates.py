# SPDX-License-Identifier: Apache-2.0
"""What the chat template makes of a conversation: tools and thoughts are learned, and what it leaves out is said."""

from __future__ import annotations

import pytest

from slim_core.training import Columns, DataError
from slim_core.training.data import to_conversations
from slim_core.training.encoding import IGNORED, ExampleEncoder
from slim_core.training.files import Record
from slim_core.training.messages import THOUGHTS
from slim_core.training.report import answer_texts
from tests.training.conftest import CHATML, small_tokenizer


# As Qwen3's: tools before all, calls in the answer, results as a user's turn; thoughts after the last question alone,
# an empty one before the last answer.
TOOLS = (
    "{% if tools %}{{ '<|im_start|>system\\n' }}"
    "{% if messages[0].role == 'system' %}{{ messages[0].content + '\\n' }}{% endif %}"
    "{{ tools | tojson }}{{ '<|im_end|>\\n' }}"
    "{% elif messages[0].role == 'system' %}{{ '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}"
    "{% endif %}"
    "{% set ns = namespace(last=0) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% set content = m.content %}"
    "{% if m.role == 'user' %}{{ '<|im_start|>user\\n' + content + '<|im_end|>\\n' }}"
    "{% elif m.role == 'tool' %}{{ '<|im_start|>user\\n<result>' + content + '</result><|im_end|>\\n' }}"
    "{% elif m.role == 'assistant' %}"
    "{% set thought = m.reasoning_content or '' %}"
    "{% if '</think>' in content %}"
    "{% set thought = content.split('</think>')[0].split('<think>')[-1].strip() %}"
    "{% set content = content.split('</think>')[-1].strip() %}{% endif %}"
    "{{ '<|im_start|>assistant\\n' }}"
    "{% if loop.index0 > ns.last and (loop.last or thought) %}"
    "{{ '<think>\\n' + thought + '\\n</think>\\n\\n' }}{% endif %}"
    "{{ content }}"
    "{% for call in m.tool_calls or [] %}"
    "{{ '<call>' + call.function.name + ' ' + (call.function.arguments | tojson) + '</call>' }}{% endfor %}"
    "{{ '<|im_end|>\\n' }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# Another form for calls than for texts, and another end, as Llama 3.1's.
OTHER_END = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{% if m.tool_calls %}{% set call = m.tool_calls[0].function %}"
    "{{ call.name + '(' + call.arguments | tojson + ')</s>' }}"
    "{% else %}{{ m.content + '<|im_end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
NO_SYSTEM = CHATML.replace("in messages %}", "in messages if message.role != 'system' %}")
# The last two messages alone.
SHORT_SIGHTED = CHATML.replace("in messages %}", "in messages[-2:] %}")
# No thoughts at all, in the last answer either.
THOUGHTLESS = CHATML.replace("message['content']", "message['content'].split('</think>')[-1]")
# Its prompt opens a thought, which its answers have not.
OPENS = CHATML.replace("assistant\\n' }}{% endif %}", "assistant\\n<think>' }}{% endif %}").replace(
    "message['content']", "message['content'].split('</think>')[-1]"
)
# Its prompt opens the thought that each answer has, as Qwen3.5's.
OPENS_ALL = TOOLS.replace("assistant\\n' }}{% endif %}", "assistant\\n<think>\\n' }}{% endif %}").replace(
    "(loop.last or thought)", "true"
)
# Wants a call before each result, as gpt-oss'.
STRICT = (
    "{% for m in messages %}{% if m.role == 'tool' and not messages[loop.index0 - 1].tool_calls %}"
    "{{ raise_exception('no call') }}{% endif %}{% endfor %}" + OTHER_END
)
LOUD = CHATML.replace("message['content']", "(message['content'] | upper)")
# Arguments as a text, as DeepSeek's.
AS_TEXT = OTHER_END.replace("call.arguments | tojson", "call.arguments")
NAMED = CHATML.replace("message['role'] +", "(message.name or message.role) +")

ASKED = {"role": "user", "content": "What is 3 and 4?"}
ANSWER = {"role": "assistant", "content": "It is seven."}
SYSTEM = {"role": "system", "content": "s"}
RESULT = {"role": "tool", "content": "7"}
CALLING = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"x": 3}}}],
}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {}}}
THOUGHT = {"role": "assistant", "content": "<think>\nthree\n</think>\n\nIt is seven."}
BESIDE = ANSWER | {"reasoning_content": "three"}
CALLED = '<call>add {"x": 3}</call><|im_end|>'
END = "<|im_end|>"
HEAD = "<think>\\nthree\\n</think>\\n\\n"


def off(message: dict) -> dict:
    return message | {"weight": 0}


def learned(template: str | None, messages: list[dict], **columns) -> tuple[list[str], str]:
    tokenizer = small_tokenizer(template)
    (made,) = to_conversations([Record({"messages": messages} | columns, "a.jsonl, line 1")], Columns())
    example = ExampleEncoder(tokenizer).encode(made)
    return answer_texts(example, tokenizer), tokenizer.decode(example.input_ids)


# template, messages, what is learned
GOOD = [
    (TOOLS, [ASKED, CALLING, RESULT, ANSWER], [CALLED, f"It is seven.{END}"]),
    (TOOLS, [ASKED, CALLING | {"content": "Wait."}, RESULT, ANSWER], [f"Wait.{CALLED}", f"It is seven.{END}"]),
    (TOOLS, [ASKED, CALLING, RESULT, CALLING, RESULT, RESULT, ANSWER], [CALLED, CALLED, f"It is seven.{END}"]),
    (TOOLS, [ASKED, ANSWER, ASKED, CALLING], [f"It is seven.{END}", CALLED]),
    (TOOLS, [ASKED, off(CALLING), RESULT, ANSWER], [f"It is seven.{END}"]),
    (TOOLS, [ASKED, CALLING, RESULT, off(ANSWER)], [CALLED]),
    (TOOLS, [SYSTEM, ASKED, CALLING, RESULT, ANSWER, ASKED, ANSWER], [CALLED, *[f"It is seven.{END}"] * 2]),
    (TOOLS, [ASKED, THOUGHT], [f"{THOUGHT['content']}{END}"]),
    *((TOOLS, [ASKED, ANSWER | {key: "three"}], [f"{THOUGHT['content']}{END}"]) for key in THOUGHTS),
    (
        TOOLS,
        [ASKED, BESIDE | CALLING, RESULT, ANSWER],
        [f"<think>\nthree\n</think>\n\n{CALLED}", f"It is seven.{END}"],
    ),
    (TOOLS, [ASKED, off(THOUGHT), ASKED, ANSWER], [f"It is seven.{END}"]),
    (TOOLS, [ASKED, off(BESIDE), ASKED, THOUGHT], [f"{THOUGHT['content']}{END}"]),
    (OTHER_END, [ASKED, CALLING, RESULT, ANSWER], ['add({"x": 3})</s>', f"It is seven.{END}"]),
    (OPENS_ALL, [ASKED, THOUGHT], [f"three\n</think>\n\nIt is seven.{END}"]),
    (OPENS_ALL, [ASKED, BESIDE], [f"three\n</think>\n\nIt is seven.{END}"]),
    (STRICT, [ASKED, CALLING, RESULT, CALLING], ['add({"x": 3})</s>'] * 2),
    (STRICT, [ASKED, CALLING, RESULT, ANSWER], ['add({"x": 3})</s>', f"It is seven.{END}"]),
    (AS_TEXT, [ASKED, CALLING, RESULT, ANSWER], ['add({"x": 3})</s>', f"It is seven.{END}"]),
    (OTHER_END, [ASKED, CALLING], ['add({"x": 3})</s>']),
    (CHATML, [ASKED, ANSWER, RESULT, ANSWER], [f"It is seven.{END}"] * 2),
    (NAMED, [ASKED | {"name": "Ada"}, ANSWER], [f"It is seven.{END}"]),
]


@pytest.mark.parametrize("template,messages,expected", GOOD, ids=[str(i) for i in range(len(GOOD))])
def test_calls_and_thoughts_are_learned_with_their_end_and_nothing_else_is(template, messages, expected):
    answers, whole = learned(template, messages)
    assert answers == expected
    for message in messages:
        if "weight" not in message:
            assert message["content"].strip() in whole


# Closes every answer, and the text besides, as Phi 3's.
ALSO_THE_TEXT = CHATML.replace("'<|im_end|>'", "'</s>'").replace(
    "{% if add", "{% if not add_generation_prompt %}<pad>{% endif %}{% if add"
)
# Closes the last answer with another token, as gpt-oss'.
OTHER_LAST = CHATML.replace("'<|im_end|>'", "('</s>' if loop.last else '<|im_end|>')")
# Closes the last answer alone.
LAST_ALONE = CHATML.replace("'<|im_end|>'", "('</s>' if loop.last else '')")
# template, what is learned, and of each token that stands there otherwise than it is learned: both
CLOSINGS = [
    (ALSO_THE_TEXT, ["It is seven.</s>", "It is seven.</s>\n<pad>"], []),
    (OTHER_LAST, ["It is seven.<|im_end|>", "It is seven.</s>"], [("<|im_end|>", "</s>")]),
    (LAST_ALONE, ["It is seven.\n", "It is seven.</s>"], [("Ċ", "</s>")]),
    (CHATML, [f"It is seven.{END}", f"It is seven.{END}"], []),
]


@pytest.mark.parametrize("answer", [ANSWER, BESIDE], ids=["plain", "with thoughts"])
@pytest.mark.parametrize(("template", "expected", "otherwise"), CLOSINGS, ids=[str(i) for i in range(len(CLOSINGS))])
def test_earlier_answers_are_closed_as_if_they_were_the_last(template, expected, otherwise, answer):
    # The thoughts are written in front of each answer.
    template = template.replace("message['content']", "(message.reasoning_content or '') + message['content']")
    tokenizer = small_tokenizer(template)
    messages = [ASKED, answer, ASKED, answer]
    (made,) = to_conversations([Record({"messages": messages}, "a.jsonl, line 1")], Columns())
    example = ExampleEncoder(tokenizer).encode(made)
    thought = answer.get("reasoning_content", "")
    assert answer_texts(example, tokenizer) == [thought + text for text in expected]
    pairs = zip(example.input_ids, example.labels, strict=True)
    differing = [tokenizer.convert_ids_to_tokens(pair) for pair in pairs if pair[1] not in (IGNORED, pair[0])]
    assert [tuple(pair) for pair in differing] == otherwise


# What a template does with the content of a call that has none, and what is written of it.
NULL = [
    ("{{ '[' + m.content + ']' if m.content is string else '' }}", ""),
    ("{{ 'x' + m.content }}", "x"),
    ("{{ m.content }}", ""),
    ("{% if m.content %}{{ m.content }}{% endif %}", ""),
]


@pytest.mark.parametrize("no_content", [{"content": None}, {"content": ""}, {}], ids=["null", "empty", "absent"])
@pytest.mark.parametrize(("content", "written"), NULL)
def test_no_content_beside_a_call_is_no_empty_text(content, written, no_content):
    template = OTHER_END.replace("{% if m.tool_calls %}", "{% if m.tool_calls %}" + content)
    calling = {key: value for key, value in CALLING.items() if key != "content"} | no_content
    answers, whole = learned(template, [ASKED, calling])
    assert answers == [written + 'add({"x": 3})</s>'] and "None" not in whole


def test_tools_and_the_system_text_reach_the_model():
    answers, whole = learned(TOOLS, [SYSTEM, ASKED, CALLING, RESULT, ANSWER], tools=[TOOL])
    assert whole.startswith('<|im_start|>system\ns\n[{"') and '"name": "add"' in whole.split("user")[0]
    assert answers == [CALLED, f"It is seven.{END}"]
    assert "Ada" in learned(NAMED, [ASKED | {"name": "Ada"}, ANSWER])[1]


# template, messages, columns, what the sentence says
BAD = [
    (
        CHATML,
        [ASKED, ANSWER],
        {"tools": [TOOL]},
        "leaves out the tools; remove them from the record, or choose a base",
    ),
    (CHATML, [ASKED, CALLING, RESULT, ANSWER], {}, "leaves out the `tool_calls` of message 2; remove it"),
    (CHATML, [ASKED, off(CALLING), RESULT, ANSWER], {}, "leaves out the `tool_calls` of message 2"),
    (CHATML, [ASKED, BESIDE], {}, "does not write the `reasoning_content` of message 2, so"),
    (CHATML, [ASKED, CALLING | {"content": "I add."}, RESULT, ANSWER], {}, "leaves out the `tool_calls` of message 2"),
    (CHATML, [ASKED, off(CALLING | {"content": "I add."}), RESULT, ANSWER], {}, "leaves out the `tool_calls`"),
    (CHATML, [ASKED | {"content": "Please add."}, ANSWER], {"tools": [TOOL]}, "leaves out the tools"),
    (CHATML, [ASKED | {"content": "Hi Ada", "name": "Ada"}, ANSWER], {}, "leaves out the `name` of message 1"),
    (CHATML, [ASKED, ANSWER | {"thinking": "seven"}], {}, "does not write the `thinking` of message 2"),
    (CHATML, [ASKED | {"name": "Ada"}, ANSWER], {}, "leaves out the `name` of message 1; remove it, or put it into"),
    (
        None,
        [ASKED, CALLING, RESULT, ANSWER],
        {},
        "has no chat template, and the plain one in its place has no form for",
    ),
    (None, [ASKED, ANSWER], {"tools": [TOOL]}, "has no chat template, and the plain one"),
    (
        NO_SYSTEM,
        [SYSTEM, ASKED, ANSWER],
        {},
        "leaves out the system text; remove it, put it into the first question",
    ),
    (NO_SYSTEM, [ASKED, ANSWER], {"system": "s"}, "leaves out the system text"),
    (SHORT_SIGHTED, [ASKED | {"content": "a"}, ANSWER, ASKED, ANSWER], {}, "leaves out message 1 .user.; remove it"),
    (SHORT_SIGHTED, [ASKED | {"content": "x" * 50}, ANSWER, ASKED, ANSWER], {}, "leaves out message 1 .user."),
    (
        TOOLS,
        [ASKED, THOUGHT, ASKED, ANSWER],
        {},
        "drops or changes the answer of message 2 when .* weight 0, or",
    ),
    (TOOLS, [ASKED, BESIDE, ASKED, ANSWER], {}, "drops or changes the answer of message 2 when .* split the"),
    (TOOLS, [ASKED, ANSWER, ASKED, THOUGHT, ASKED, ANSWER], {}, "the answer of message 4 when"),
    (TOOLS, [ASKED, THOUGHT, ASKED, ANSWER], {"system": "s"}, "the answer of message 2 when"),
    (THOUGHTLESS, [ASKED, THOUGHT], {}, "drops or changes a part of the answer of message 2, so it cannot be"),
    (OPENS, [ASKED, THOUGHT], {}, "drops or changes a part of the answer of message 2"),
    (LOUD, [ASKED, ANSWER], {}, "drops or changes a part of the answer of message 2"),
    ("{{ foo.bar }}", [ASKED, ANSWER], {}, "cannot write any conversation .'foo' is undefined.; repair the template"),
    ("{% for m in messages %}{{ m", [ASKED, ANSWER], {}, "cannot write any conversation .unexpected end of template"),
    (STRICT, [ASKED, ANSWER | {"tool_calls": []}, RESULT, ANSWER], {}, "refuses this conversation .no call."),
]


@pytest.mark.parametrize("template,messages,columns,sentence", BAD, ids=[str(i) for i in range(len(BAD))])
def test_what_the_template_leaves_out_or_changes_is_said(template, messages, columns, sentence):
    with pytest.raises(DataError, match=sentence) as caught:
        learned(template, messages, **columns)
    message = str(caught.value)
    assert message.startswith("a.jsonl, line 1: ") and "\n" not in message and message.endswith(".")


# -- plain text --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", [None, CHATML])
def test_of_plain_text_every_token_is_learned_without_a_template(template):
    tokenizer = small_tokenizer(template)
    (made,) = to_conversations([Record({"text": "All of\n it. "}, "a.jsonl, line 1")], Columns())
    example = ExampleEncoder(tokenizer).encode(made)
    assert tokenizer.decode(example.input_ids) == "All of\n it. "
    assert example.labels == example.input_ids and IGNORED not in example.labels


def test_plain_text_begins_with_one_begin_token_and_a_single_token_teaches_nothing(stories_tokenizer):
    for text in ("Once upon a time", "<s>Once upon a time"):
        (made,) = to_conversations([Record({"text": text}, "here")], Columns())
        ids = ExampleEncoder(stories_tokenizer).encode(made).input_ids
        assert ids[0] == stories_tokenizer.bos_token_id and ids.count(ids[0]) == 1
    (made,) = to_conversations([Record({"text": "a"}, "a.jsonl, line 1")], Columns())
    with pytest.raises(DataError, match="line 1: the text is a single token with nothing before it"):
        ExampleEncoder(small_tokenizer()).encode(made)
