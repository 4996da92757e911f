# SPDX-License-Identifier: Apache-2.0
"""Lists of prompts: what is read of each kind of file, and what is said of those that cannot be asked."""

import json

import pytest

from slim_core.base.errors import EngineError
from slim_core.base.messages import Message
from slim_core.many import read_lines, read_prompt_file, read_prompts
from slim_core.many.prompts import guessed


def user(*texts):
    return [((Message("user", text),), line) for text, line in texts]


TALK = '[{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi"}, '
TALK += '{"role": "assistant", "content": "Hello"}, {"role": "user", "content": "Bye"}]'
TOLD = (
    Message("system", "Be short."),
    Message("user", "Hi"),
    Message("assistant", "Hello"),
    Message("user", "Bye"),
)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.txt", "One\nTwo\n", user(("One", 1), ("Two", 2))),
        ("a.jsonl", '"One"\r"Two"\r', user(("One", 1), ("Two", 2))),
        ("a.jsonl", '"One"\n\ufeff"Two"', user(("One", 1), ("Two", 2))),
        ("a.csv", "prompt,answer,context\nOne,x,\n", user(("One", 2))),
        (
            "a.jsonl",
            '{"messages": [{"role": "user", "content": [{"type": "text", "text": "One"}]}], "id": 4}',
            user(("One", 1)),
        ),
        ("a.txt", "\ufeffOne\r\n\r\n  Two  \r\n", user(("One", 1), ("Two", 3))),
        ("a.TXT", "line separator\u2028inside", user(("line separator\u2028inside", 1))),
        ("a.csv", "prompt\nOne\nTwo\n", user(("One", 2), ("Two", 3))),
        ("a.csv", 'id, prompt\r\n1,"One, and\nmore"\r\n2,Two\r\n', user(("One, and\nmore", 2), ("Two", 4))),
        ("a.csv", "prompt,system\nOne,\n", user(("One", 2))),
        ("a.csv", "system,prompt\nBe short.,Bye\n", [((TOLD[0], TOLD[3]), 2)]),
        ("a.json", '["One",\n "Two"]', user(("One", 1), ("Two", 2))),
        ("a.json", '[\n{"prompt": "One", "id": 1},\n{"prompt": "Two"}\n]', user(("One", 2), ("Two", 3))),
        ("a.json", f'[{{"messages": {TALK}}}]', [(TOLD, 1)]),
        ("a.jsonl", '{"prompt": "One"}\n\n{"prompt": "Two"}', user(("One", 1), ("Two", 3))),
        ("a.jsonl", f'{{"messages": {TALK}}}\n"Two"\n', [(TOLD, 1), *user(("Two", 2))]),
        ("a.jsonl", '{"system": "Be short.", "prompt": "Bye"}', [((TOLD[0], TOLD[3]), 1)]),
        ("a.jsonl", '{"prompt": "=1+1 \\u00e9\\n\\u2028"}', user(("=1+1 é", 1))),
    ],
)
def test_what_is_read(name, text, expected):
    prompts = read_prompts(text.encode(), name)
    assert [(p.messages, p.place) for p in prompts] == [
        (messages, f"{name}, line {line}") for messages, line in expected
    ]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.xlsx", b"PK", "'a.xlsx' has an unknown file type: a file of prompts ends in .txt, .csv, .json, .jsonl."),
        ("a", b"One", "'a' has an unknown file type: a file of prompts ends in .txt, .csv, .json, .jsonl."),
        ("a.txt", b"", "There is no prompt in a.txt: write at least one."),
        ("a.txt", b" \n\t\n", "There is no prompt in a.txt: write at least one."),
        ("a.txt", b"One\nTw\xff", "a.txt, line 2: byte 6 is not UTF-8; save the file as UTF-8."),
        (
            "a.txt",
            b"One\nT\0",
            "a.txt, line 2: it contains a NUL byte, so it is damaged or not text; save it as UTF-8.",
        ),
        ("a.csv", b"question\nOne\n", 'a.csv, line 1: there is no column `prompt`, only "question"'),
        ("a.csv", b"prompt;id\nOne;1\n", "a.csv, line 1: the columns are separated by ; but must be by a comma"),
        ("a.csv", b"prompt,id\nOne\n", "a.csv, line 2: 1 fields, but the header has 2 (prompt, id)"),
        ("a.csv", b"prompt,id\nOne,1\n ,2\n", "a.csv, line 3: `prompt` is empty; write the prompt."),
        ("a.csv", b'prompt\n"One\n', "a.csv, line 2: this is not valid CSV"),
        ("a.csv", b"prompt\n", "There is no prompt in a.csv: write at least one."),
        ("a.json", b"[]", "There is no prompt in a.json: write at least one."),
        ("a.json", b"{", "a.json, line 1: this is not a JSON list"),
        ("a.json", b'["One"', "a.json, line 1: this is not a JSON list"),
        ("a.json", b'["One",\n 2]', 'a.json, line 2: a prompt must be "…", {"prompt": "…"} or'),
        ("a.json", b'[{"question": "One"}]', "a.json, line 1: `prompt` is missing or empty; write the prompt."),
        ("a.json", b'[\n\n{"prompt": 1}]', "a.json, line 3: `prompt` must be text, not 1."),
        ("a.json", b'[{"prompt": "a", "prompt": "b"}]', 'a.json, line 1: an object has the name "prompt" twice'),
        ("a.json", b'["\\ud800"]', "a.json, line 1: \\ud800 is half of a character"),
        ("a.json", b"[" * 100_000, "a.json, line 1: lists and objects are nested more than 64 deep"),
        ("a.jsonl", b'{"prompt": "One"}\n{"prompt"', "a.jsonl, line 2: this is not valid JSON"),
        ("a.jsonl", b'{"prompt": "a", "messages": []}', "a.jsonl, line 1: there are both `prompt` and `messages`"),
        ("a.jsonl", b'{"system": "a", "messages": []}', "a.jsonl, line 1: there are both `system` and `messages`"),
        ("a.jsonl", b'{"prompt": "a", "system": 1}', "a.jsonl, line 1: `system` must be text, not 1."),
        ("a.jsonl", b'{"messages": []}', "a.jsonl, line 1: `messages` must be a list such as"),
        (
            "a.jsonl",
            b'{"messages": ["Hi"]}',
            'a.jsonl, line 1: message 1 must have `role` and `content`, but is "Hi".',
        ),
        (
            "a.jsonl",
            b'{"messages": [{"role": "tool", "content": "x"}]}',
            'a.jsonl, line 1: message 1 has the role "tool"; it must be one of system, user, assistant.',
        ),
        (
            "a.jsonl",
            b'{"messages": [{"role": "user", "content": " "}]}',
            "a.jsonl, line 1: message 1: `content` is empty; write the prompt.",
        ),
        (
            "a.jsonl",
            b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}',
            "alternate between user and assistant and end with user, not user, assistant.",
        ),
        (
            "a.jsonl",
            b'{"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}',
            "alternate between user and assistant and end with user, not user, user.",
        ),
        *(
            (
                "a.jsonl",
                json.dumps({"prompt": "a", key: ["b"]}).encode(),
                f"a.jsonl, line 1 has `{key}`, which would not",
            )
            for key in ("input", "context", "history", "tools", "images")
        ),
        ("a.csv", b"prompt,context\na,b\n", "a.csv, line 2 has `context`, which would not be asked; write it into"),
        (
            "a.jsonl",
            b'{"messages": [{"role": "user", "content": "a", "tool_calls": [{"name": "f"}]}]}',
            "a.jsonl, line 1: message 1 has `tool_calls`, which would not be asked",
        ),
        (
            "a.jsonl",
            b'{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}',
            'a.jsonl, line 1: message 1: part 1 of `content` is of the type "image_url", but only text',
        ),
        ("a\x1b[2J.txt", b"", "There is no prompt in a\\x1b[2J.txt: write at least one."),
    ],
)
def test_what_cannot_be_asked_is_named_with_its_place(name, content, sentence):
    with pytest.raises(EngineError) as refused:
        read_prompts(content, name)
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


def test_more_than_may_be_asked():
    assert len(read_lines("a\nb\n\n", "the box", limit=2)) == 2
    with pytest.raises(EngineError, match=r"^There are 3 prompts in the box; at most 2 can be asked at once\.$"):
        read_lines("a\nb\nc", "the box", limit=2)


def test_a_file_by_its_path(tmp_path):
    path = tmp_path / "some.jsonl"
    path.write_text('{"prompt": "One"}\n', encoding="utf-8")
    assert [p.text for p in read_prompt_file(path)] == ["One"]
    with pytest.raises(EngineError, match=r"'none\.txt' cannot be read: no such file or directory; name a file"):
        read_prompt_file(tmp_path / "none.txt")
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(EngineError, match=r"'folder\.txt' cannot be read: is a directory"):
        read_prompt_file(tmp_path / "folder.txt")


@pytest.mark.parametrize(
    ("content", "kind"),
    [(b'{"prompt": "a"}', ".jsonl"), (b'\n ["a"]', ".json"), (b"What is [this]?", ".txt"), (b"", ".txt")],
)
def test_what_has_no_name_is_told_by_its_first_character(content, kind):
    assert guessed(content) == kind


def test_a_system_message_is_added_where_there_is_none():
    (plain,) = read_lines("One", "here")
    assert plain.messages_with("Be kind.") == (Message("system", "Be kind."), Message("user", "One"))
    assert plain.messages_with("") == (Message("user", "One"),)
    (own,) = read_prompts(f'[{{"messages": {TALK}}}]'.encode(), "a.json")
    assert own.messages_with("Be kind.") == TOLD
