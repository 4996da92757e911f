# SPDX-License-Identifier: Apache-2.0
"""The layouts that people have are read without flags, and what is not read is listed."""

from __future__ import annotations

import csv
import json

import pyarrow
import pyarrow.parquet
import pytest

from slim_core.training import Columns, DataError
from slim_core.training.data import Conversation, PlainText, read_source, to_conversations, unused
from slim_core.training.files import Record


PLACE = "a.jsonl, line 1"
QA = [("user", "q"), ("assistant", "a")]
LATER = [*QA, ("user", "q2"), ("assistant", "a2")]
ASKED = [{"role": "user", "content": "q"}]
ANSWERED = [{"role": "assistant", "content": "a"}]
TALK = [*ASKED, *ANSWERED]
SHARED = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
MORE = [*TALK, {"role": "user", "content": "q2"}]
IN_ONE = [("user", "q\n\nmore"), ("assistant", "a")]

# record, (role, text) of its messages, what is not used
LAYOUTS = [
    # -- pairs
    ({"prompt": "q", "completion": "a", "id": 7}, QA, ["id"]),
    ({"prompt": "q", "response": "a"}, QA, []),
    ({"question": "q", "answer": "a", "context": "c"}, QA, ["context"]),
    ({"question": "q", "response": "a", "system_prompt": "s"}, [("system", "s"), *QA], []),
    ({"query": "q", "response": "a"}, QA, []),
    ({"input": "q", "output": "a"}, QA, []),
    ({"prompt": "q", "completion": "a", "text": "both", "label": None}, QA, ["text"]),
    ({"prompt": "q", "chosen": "b", "rejected": "c", "completion": "a"}, QA, ["chosen", "rejected"]),
    # -- Alpaca and Dolly
    ({"instruction": "q", "input": "more", "output": "a", "text": "all"}, IN_ONE, ["text"]),
    ({"instruction": "q", "context": "more", "response": "a", "category": "x"}, IN_ONE, ["category"]),
    ({"instruction": "q", "output": "a", "system": "s", "history": []}, [("system", "s"), *QA], []),
    ({"instruction": "q2", "output": "a2", "history": [["q", "a"]]}, LATER, []),
    ({"instruction": "q2", "output": "a2", "history": '[["q", "a"]]', "system": ""}, LATER, []),
    ({"instruction": "q", "output": "a", "history": None, "system": None}, QA, []),
    # -- messages
    ({"messages": TALK, "source": "web"}, QA, ["source"]),
    ({"messages": TALK, "prompt": "p", "prompt_id": 1}, QA, ["prompt", "prompt_id"]),
    ({"conversations": TALK}, QA, []),
    ({"conversation": TALK}, QA, []),
    ({"messages": TALK, "system": "s"}, [("system", "s"), *QA], []),
    ({"messages": [{"role": "developer", "content": "s"}, *TALK]}, [("system", "s"), *QA], []),
    ({"messages": [{"role": "system", "content": "s"}, *TALK], "system": "s"}, [("system", "s"), *QA], []),
    ({"messages": [m | {"id": 3, "model": "x"} for m in TALK]}, QA, ["messages[].id", "messages[].model"]),
    # -- ShareGPT
    ({"conversations": SHARED, "id": "x"}, QA, ["id"]),
    ({"conversations": SHARED, "system": "s"}, [("system", "s"), *QA], []),
    ({"conversations": [{"from": "system", "value": "s"}, *SHARED]}, [("system", "s"), *QA], []),
    ({"conversations": [m | {"weight": None} for m in SHARED]}, QA, []),
    ({"messages": SHARED}, QA, []),
    ({"messages": [{"role": "User", "value": "q"}, {"from": "GPT", "content": "a"}]}, QA, []),
    ({"messages": [m | {"from": None, "value": None} for m in TALK]}, QA, []),
    # -- prompt and completion as messages
    ({"prompt": ASKED, "completion": ANSWERED}, QA, []),
    ({"prompt": ASKED, "completion": "a"}, QA, []),
    ({"prompt": "q", "completion": ANSWERED}, QA, []),
    ({"prompt": MORE, "completion": "a2"}, LATER, []),
    # -- other names that leave no doubt
    ({"Question": "q", "Answer": "a"}, QA, []),
    ({"PROMPT": "q", "Completion": "a", "System": "s", "History": []}, [("system", "s"), *QA], []),
    ({"Instruction": "q", "Input": "more", "Output": "a"}, IN_ONE, []),
    ({"Messages": TALK, "System_Prompt": "s"}, [("system", "s"), *QA], []),
    ({"prompt": "q", "Prompt": "other", "completion": "a"}, QA, ["Prompt"]),
    ({"user": "q", "assistant": "a"}, QA, []),
    ({"Human": "q", "Assistant": "a"}, QA, []),
    ({"problem": "q", "solution": "a", "level": 5}, QA, ["level"]),
    ({"inputs": "q", "targets": "a"}, QA, []),
    ({"instruction": "q", "answer": "a"}, QA, []),
    ({"instruction": "q", "input": "more", "completion": "a"}, IN_ONE, []),
    ({"prompt": "q", "output": "a"}, QA, []),
    ({"input": "q", "response": "a", "history": [["q", "a"]]}, [*QA, *QA], []),
    ({"text": TALK, "source": "x"}, QA, ["source"]),
    ({"chat": TALK, "notes": ["x"]}, QA, ["notes"]),
    ({"dialog": SHARED}, QA, []),
    # -- parts
    ({"messages": [ASKED[0], {"role": "assistant", "content": [{"type": "text", "text": "a"}]}]}, QA, []),
    (
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": t} for t in ("q", "\n\nmore")]},
                *ANSWERED,
            ]
        },
        IN_ONE,
        [],
    ),
    ({"prompt": [{"role": "user", "content": [{"type": "input_text", "text": "q"}]}], "completion": "a"}, QA, []),
]


def texts(made: Conversation) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in made.messages]


@pytest.mark.parametrize("fields,expected,left", LAYOUTS, ids=[str(i) for i in range(len(LAYOUTS))])
def test_layouts_are_read_without_flags_and_the_rest_is_listed(fields, expected, left):
    records = [Record(fields, PLACE)]
    (made,) = to_conversations(records, Columns())
    assert texts(made) == expected and made.place == PLACE
    assert unused(records, Columns()) == left


@pytest.mark.parametrize(
    "name",
    ["user", "human", "prompter", "assistant", "gpt", "model", "bot", "chatgpt", "ai", "system", "developer"],
)
def test_every_name_of_a_role_is_read(name):
    role = {"human": "user", "prompter": "user", "developer": "system"}.get(
        name, name if name in ("user", "system") else "assistant"
    )
    talk = [{"from": name, "value": "x"}]
    talk = [*SHARED[:1], *talk] if role == "assistant" else [*talk, *SHARED[role == "user" :]]
    (made,) = to_conversations([Record({"conversations": talk}, PLACE)], Columns())
    assert (role, "x") in texts(made)


def test_plain_text_is_a_passage_and_columns_may_be_named():
    assert to_conversations([Record({"text": "All of it.", "id": 1}, PLACE)], Columns()) == [
        PlainText("All of it.", PLACE)
    ]
    records = [Record({"story": "All of it.", "messages": TALK}, PLACE)]
    assert to_conversations(records, Columns(text="story")) == [PlainText("All of it.", PLACE)]
    assert unused(records, Columns(text="story")) == ["messages"]
    (made,) = to_conversations([Record({"talk": TALK, "role": "s"}, PLACE)], Columns(messages="talk", system="role"))
    assert texts(made) == [("system", "s"), *QA]


@pytest.mark.parametrize("weight,unlearned", [(None, {1}), (0, {1}), (1, set())])
def test_of_a_prompt_of_messages_only_the_completion_is_learned_unless_it_says_so(weight, unlearned):
    prompt = [ASKED[0], ANSWERED[0] | {"weight": weight}, ASKED[0]]
    (made,) = to_conversations([Record({"prompt": prompt, "completion": ANSWERED}, PLACE)], Columns())
    assert made.unlearned == unlearned


def test_a_column_that_only_later_records_fill_is_read_too():
    records = [Record({"prompt": "q", "completion": "a"}, "1")]
    records.append(Record({"prompt": "q", "completion": "a", "system": "s", "history": [["q", "a"]]}, "2"))
    assert [len(made.messages) for made in to_conversations(records, Columns())] == [2, 5]
    assert unused([*records, Record({"prompt": "q", "completion": "a", "note": "x"}, "3")], Columns()) == ["note"]


def test_lists_in_the_cells_of_other_formats_are_read(tmp_path):
    row = {"conversations": SHARED, "system": "s"}
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([row, [json.dumps(SHARED), "s"]])
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "a.parquet")
    for name in ("a.csv", "a.parquet"):
        source = read_source(str(tmp_path / name), split="train", subset=None, revision=None)
        (made,) = to_conversations(source.records, Columns())
        assert texts(made) == [("system", "s"), *QA]


PAIR = {"instruction": "q", "output": "a"}
IMAGE = {"type": "image_url", "image_url": {"url": "x"}}
# record, what the sentence says
BAD = [
    (PAIR | {"history": [["q"]]}, r"`history`: turn 1 must be \[question, answer\], two texts, not \[\"q\"\]"),
    (PAIR | {"history": [["q", "a"], ["q", None]]}, "`history`: turn 2 must be"),
    (PAIR | {"history": "earlier"}, "`history`: this is not valid JSON .*; it must be a list of turns"),
    (PAIR | {"history": {"q": "a"}}, "`history`: turn 1 must be"),
    (PAIR | {"system": 3}, "`system` must be text but is 3"),
    (PAIR | {"input": ["a"]}, "`input` must be text but is"),
    (
        {"messages": [{"role": "system", "content": "t"}, *TALK], "system": "s"},
        "`system` and the first message are two different system texts; keep one",
    ),
    (
        {"messages": [ASKED[0] | {"content": [IMAGE]}, *ANSWERED]},
        'part 1 of `content` is of the type "image_url", but',
    ),
    (
        {"messages": [ASKED[0] | {"content": [{"type": "text", "text": "a"}, {"type": "image"}]}, *ANSWERED]},
        'message 1 of `messages` .user.: part 2 of `content` is of the type "image", but only text can be trained on',
    ),
    ({"messages": [ASKED[0] | {"content": ["q"]}, *ANSWERED]}, 'part 1 of `content` is "q", but only text'),
    ({"messages": [ASKED[0] | {"content": {"q": 1}}, *ANSWERED]}, "`content` must be text but is .* .dict.\\.$"),
    ({"messages": [{"role": "user"}, *ANSWERED]}, "message 1 of `messages` has `role` but no `content`; add it"),
    ({"messages": [ASKED[0] | {"value": "other"}, *ANSWERED]}, "has `content` and `value`, which differ; keep one"),
    ({"messages": [ASKED[0] | {"from": "gpt"}, *ANSWERED]}, "message 1 of `messages` has `role` and `from`, which"),
    ({"messages": [ASKED[0] | {"content": [{"type": "text"}]}, *ANSWERED]}, "part 1 of `content` has no `text`; fill"),
    ({"messages": [{"content": "q"}, *ANSWERED]}, "must have `role` and `content`, or .*; it has `content`"),
    ({"prompt": [{"text": "q"}], "completion": "a"}, "`prompt` must be text, or a list of messages with `role`"),
    ({"prompt": ANSWERED, "completion": "a"}, "`prompt` and `completion` together must alternate"),
    ({"text": ["a"]}, "`text` must be text but is .*list"),
    ({"text": " "}, "`text` is empty; fill it in"),
    ({"text": "x", "labels": [1]}, "`text` stands beside `labels`"),
    ({"Text": "x", "Label": 1}, "`Text` stands beside `Label`, .* --prompt-column Text --completion-column Label, or"),
    # Two of a kind: nobody knows which.
    ({"question": "q", "query": "q", "output": "a"}, "the columns are `question`, `query`, `output`; expected are"),
    (
        {"problem": "q", "solution": "a", "target": "b"},
        "the columns are `problem`, `solution`, `target`; expected are",
    ),
    ({"chat": TALK, "other": TALK}, "the columns are `chat`, `other`; expected are"),
    ({"source": "q", "target": "a"}, "the columns are `source`, `target`; expected are"),
    (
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        "`chosen` and `rejected` are data for learning from .* --prompt-column prompt --completion-column chosen",
    ),
    ({"chosen": TALK, "rejected": TALK}, "data for learning from preferences, .* pass --messages-column chosen"),
]


@pytest.mark.parametrize("fields,sentence", BAD, ids=[str(i) for i in range(len(BAD))])
def test_what_fits_no_layout_is_refused_with_its_place(fields, sentence):
    with pytest.raises(DataError, match=sentence) as caught:
        to_conversations([Record(fields, PLACE)], Columns())
    assert str(caught.value).startswith(PLACE) and "\n" not in str(caught.value)
