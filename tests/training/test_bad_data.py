# SPDX-License-Identifier: Apache-2.0
"""Whatever is wrong with the data ends in one sentence that names the file, the line and the remedy."""

from __future__ import annotations

import gzip
import io
import json

import pyarrow
import pyarrow.parquet
import pytest

from slim_core.training import Columns, DataError, TrainingError
from slim_core.training.data import read_source, to_conversations
from tests.training.conftest import write_jsonl


GOOD = '{"prompt": "q", "completion": "a"}\n'


def talk(*roles: str, **changes) -> str:
    return json.dumps({"messages": [{"role": role, "content": "x"} | changes for role in roles]}) + "\n"


def weighed(role: str, weight: object) -> str:
    """A question and an answer, one of them with a weight."""
    messages = [{"role": name, "content": "x"} for name in ("user", "assistant")]
    messages[role == "assistant"]["weight"] = weight
    return json.dumps({"messages": messages}) + "\n"


def in_jsonl(value: str) -> str:
    return f'{GOOD}{{"prompt": "q", "completion": "a", "unused": {value}}}\n'


def in_json(value: str) -> str:
    return f'[{GOOD},\n{{"prompt": "q", "completion": "a", "unused": {value}}}]'


def wrapped(value: str) -> str:
    return f'{{"version": 1, "data": {in_json(value)}}}'


# name, how it holds a column that is not used, where that stands
HOLDERS = [
    ("a.jsonl", in_jsonl, "a.jsonl, line 2"),
    ("a.json", in_json, "a.json, line 3"),
    ("a.json", wrapped, "a.json, line 3"),
]
BREAKING = [
    ('"\\ud83d"', r"\\ud83d is half of a character; the other half is missing; write"),
    ('"\\uDE00 later"', r"\\ude00 is half of a character"),
    ('{"\\ud83d": 1}', r"\\ud83d is half of a character"),
    ("9" * 5000, "a number has thousands of digits; write it as text or remove it"),
    ("-" + "9" * 5000, "a number has thousands of digits"),
    ("[" * 100 + "]" * 100, "lists and objects are nested more than 64 deep; remove that column"),
    ('{"a":' * 100_000 + "1" + "}" * 100_000, "lists and objects are nested more than 64 deep"),
]
_table = io.BytesIO()
_binary = pyarrow.array([b"\xff"], pyarrow.binary())
_text = pyarrow.StringArray.from_buffers(1, *_binary.buffers()[1:])
pyarrow.parquet.write_table(pyarrow.table({"prompt": _text, "completion": ["a"]}), _table)
NOT_UTF8 = _table.getvalue()


def parquet(**columns: pyarrow.Array) -> bytes:
    written = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["q"], "completion": ["a"]} | columns), written)
    return written.getvalue()


# Values that Parquet has and Python has not, in a column that is not used.
UNREADABLE = [
    ("date32", parquet(t=pyarrow.array([10**8], pyarrow.date32()))),
    ("timestamp", parquet(t=pyarrow.array([2**62], pyarrow.timestamp("us")))),
    ("timestamp", parquet(t=pyarrow.array([1], pyarrow.timestamp("us", tz="Foo/Bar")))),
]

# name, content, what the sentence says
BAD = [
    # -- files
    ("a.jsonl", b"", "a.jsonl is empty; it needs at least one record"),
    ("a.jsonl", b" \n\n", "a.jsonl is empty"),
    ("a.json", b"[]", "a.json has no record"),
    ("a.csv", b"prompt,completion\n", "a.csv has no record"),
    ("a.txt", b"hello", "a.txt has an unknown file type; data files end in .jsonl"),
    ("a.jsonl", GOOD.encode() + b'{"prompt": "\xff"}', "a.jsonl, line 2: byte 47 is not UTF-8; save the file as UTF"),
    ("a.csv", "prompt,completion\nq,a".encode("utf-16"), "a.csv is saved as UTF-16; save it as UTF-8"),
    ("a.parquet", b"PAR1 no", r"a.parquet cannot be read as Parquet \(.+\); write the file again"),
    # -- JSONL
    (
        "a.jsonl",
        GOOD + '{"prompt": "q",\n',
        r"a.jsonl, line 2: this is not valid JSON \(.* at character 16\); each line must",
    ),
    ("a.jsonl", GOOD + "\n[1, 2]\n", r"a.jsonl, line 3: a record must be a JSON object such as .*, not \[1, 2\]"),
    (
        "a.jsonl",
        "[\n" + GOOD + "]",
        "a.jsonl, line 1: this is not valid JSON .*; name the file .json if it is one JSON array",
    ),
    ("a.jsonl", GOOD + GOOD.strip() + GOOD, "a.jsonl, line 2: this is not valid JSON .Extra data"),
    # -- JSON
    (
        "a.json",
        GOOD,
        r"a.json, line 1: the file is not one JSON array but one object with .*; put the records between \[ and \]",
    ),
    ("a.json", f"[{GOOD},\n{{]", "a.json, line 3: this is not valid JSON"),
    ("a.json", f"[{GOOD}", r"a.json, line 2: this is not valid JSON \(Expecting , or \]"),
    ("a.json", f"[{GOOD}]\n[]", "a.json, line 3: this is not valid JSON .Extra data"),
    ("a.json", '["a",\n"b"]', 'a.json, line 1: a record must be a JSON object such as .*, not "a"'),
    # -- CSV
    ("a.csv", "prompt,completion\nq,a\nq,a,b\n", r"a.csv, line 3: 3 fields, but the header has 2 \(prompt, comp.*"),
    ("a.csv", "prompt,completion\nq\n", "a.csv, line 2: 1 fields, but the header has 2"),
    ("a.csv", 'prompt,completion\n"q,a\n', 'a.csv, line 2: this is not valid CSV .*; close each "'),
    ("a.csv", 'prompt,completion\nq,"a"b\n', "a.csv, line 2: this is not valid CSV"),
    ("a.csv", "prompt;completion\nq;a\n", "a.csv, line 1: the columns are separated by ; but must be by a comma"),
    ("a.csv", "prompt|completion\nq|a\n", "a.csv, line 1: the columns are separated by [|] but must be by a comma"),
    (
        "a.tsv",
        "prompt,completion\nq,a\n",
        "a.tsv, line 1: the columns are separated by commas but must be by a tab; na",
    ),
    ("a.csv", 'prompt, completion\nq, "a"\n', 'a.csv, line 2: a field begins with a space before its "'),
    (
        "a.csv",
        "messages\n\"[{'role': 'user'}]\"\n",
        "a.csv, line 2: `messages`: this is not valid JSON .*; this is how Python shows lists and dicts",
    ),
    ("a.csv", "prompt,prompt\nq,a\n", "a.csv, line 1: the first line must name each column once"),
    ("a.csv", "prompt,\nq,a\n", "a.csv, line 1: the first line must name each column once"),
    ("a.json", '{"data": [{"prompt": "q", "completion": "a"}, 5]}', "a.json, line 1: a record must be a JSON object"),
    ("a.json", '{"data": []}', "a.json has no record"),
    (
        "a.json",
        '{"train": [{"prompt": "q"}], "test": [{"prompt": "q"}]}',
        "a.json has several lists of records, `train` and `test`; put each in a file of its own",
    ),
    (
        "a.json",
        '{"data": [\n{"prompt": "q"}\n{"prompt": "q"}]}',
        r"a.json, line 3: this is not valid JSON \(Expecting , or",
    ),
    # -- what breaks a reader
    *((name, made(bad), f"{place}: {sentence}") for bad, sentence in BREAKING for name, made, place in HOLDERS),
    (
        "a.jsonl",
        GOOD.encode() + b'{"prompt": "\0"}',
        "a.jsonl, line 2: it contains a NUL byte, so it is damaged or not",
    ),
    ("a.csv", b"prompt,completion\nq,\0a\n", "a.csv, line 2: it contains a NUL byte"),
    ("a.json", b'[\n{"prompt": "q",\n"x": "\0"}]', "a.json, line 3: it contains a NUL byte"),
    ("a.jsonl", '{"prompt": "q\\u0000", "completion": "a"}', "a.jsonl, line 1: message 1 contains a NUL character"),
    ("a.jsonl", '{"text": "q\\u0000"}', "a.jsonl, line 1: `text` contains a NUL character"),
    ("a.jsonl", '{"prompt": "q", "prompt": "r", "completion": "a"}', 'an object has the name "prompt" twice; keep'),
    (
        "a.csv",
        'messages\n"[{""role"": ""user"", ""content"": ""\\ud83d""}]"\n',
        r"a.csv, line 2.*: \\ud83d is half of a",
    ),
    ("a.parquet", NOT_UTF8, "a.parquet: a text in it is not UTF-8; write the file again"),
    ("a.jsonl.gz", b"no gzip", "a.jsonl.gz cannot be unpacked .*; pack the file again with gzip"),
    ("a.jsonl.gz", gzip.compress(GOOD.encode())[:-9], "a.jsonl.gz cannot be unpacked"),
    ("a.jsonl.gz", gzip.compress(b""), "a.jsonl.gz is empty"),
    ("a.txt.gz", gzip.compress(b"hello"), "a.txt.gz has an unknown file type"),
    ("a.jsonl.gz", gzip.compress(gzip.compress(b"{}")), "a.jsonl.gz is packed with gzip twice; unpack it once"),
    ("a.csv", "prompt,completion".encode("utf-32"), "a.csv is saved as UTF-32"),
    *(
        ("a.parquet", made, f"a.parquet: the column `t` .{kind}.* cannot be read .*; remove")
        for kind, made in UNREADABLE
    ),
    # -- columns
    (
        "a.jsonl",
        '{"body": "x", "id": 1}',
        "a.jsonl, line 1: the columns are `body`, `id`; expected are `messages`, or",
    ),
    (
        "a.jsonl",
        '{"text": "x", "label": 1}',
        "`text` stands beside `label`, .* --prompt-column text --completion-column label, or --text-column text",
    ),
    ("a.jsonl", "{}", "a.jsonl, line 1: the columns are none; expected are"),
    ("a.jsonl", json.dumps({f"c{i}": 1 for i in range(500)}), "`c11` and 488 more; expected are"),
    (
        "a.json",
        '{"prompt": ["q"], "completion": ["a"]}',
        "but one object with `prompt`, `completion`; put the records",
    ),
    ("a.jsonl", GOOD + '{"prompt": "q"}', "a.jsonl, line 2: there is no `completion`, which the first record has"),
    (
        "a.jsonl",
        '{"prompt": "q", "completion": 3}',
        r"line 1: `completion` must be text but is 3 \(int\); write it as",
    ),
    ("a.jsonl", '{"prompt": null, "completion": "a"}', "a.jsonl, line 1: `prompt` must be text but is empty"),
    ("a.jsonl", '{"prompt": "q", "completion": " "}', "a.jsonl, line 1: `completion` is empty; fill it in or remove"),
    ("a.csv", "instruction,input,output\nq,,\n", "a.csv, line 2: `output` is empty"),
    (
        "a.jsonl",
        '{"prompt": [], "completion": "a"}',
        "`prompt` must be text, or a list of messages with .*but is \\[\\]",
    ),
    # -- messages
    ("a.jsonl", '{"messages": []}', "a.jsonl, line 1: `messages` must be a list of messages such as"),
    (
        "a.jsonl",
        '{"messages": "hello"}',
        "line 1: `messages`: this is not valid JSON .*; it must be a list of messages such",
    ),
    ("a.jsonl", '{"messages": ["hello"]}', "a.jsonl, line 1: message 1 of `messages` must have `role` and `content`"),
    (
        "a.jsonl",
        talk("user", "critic"),
        'message 2 of `messages` has the role "critic"; it must be one of system, user, assistant',
    ),
    ("a.jsonl", talk("user", "assistant", content=""), r"line 1: message 1 of `messages` \(user\) has no text"),
    ("a.jsonl", talk("user", "assistant", content=None), "has no text in `content`; fill it in or remove"),
    ("a.jsonl", talk("user", "assistant", "user"), "line 1: `messages` must end with an answer"),
    ("a.jsonl", weighed("user", 1), "message 1 of `messages` .user. has the weight 1, but only answers are learned"),
    (
        "a.jsonl",
        weighed("assistant", 2),
        "message 2 of `messages` has the weight 2; it must be 1 or true .learned., or 0",
    ),
    (
        "a.jsonl",
        weighed("assistant", "0"),
        'message 2 of `messages` has the weight "0"; it must be 1 or true .learned.',
    ),
    ("a.jsonl", weighed("assistant", 0), "line 1: every answer of `messages` has weight 0, so there is nothing to"),
    ("a.jsonl", talk("user", "user", "assistant"), "line 1: `messages` must alternate between user .* and assistant"),
    ("a.jsonl", talk("assistant"), "line 1: `messages` must alternate"),
    (
        "a.jsonl",
        talk("user", "system", "assistant"),
        "line 1: `messages` has a system message after the first message",
    ),
    ("a.jsonl", talk("system"), "line 1: `messages` must end with an answer"),
]


def read(path, columns=None):
    source = read_source(str(path), split="train", subset=None, revision=None)
    return to_conversations(source.records, columns or Columns())


# A file's name, what it begins with, and what is said of it.
OTHER_CONTENT = [
    ("a.jsonl", b"\x1f\x8b\x08\x00", "a.jsonl is packed with gzip; let its name end in .gz."),
    ("a.csv", b"PAR1\x15\x04", "a.csv is a Parquet file; let its name end in .parquet."),
    ("a.csv", b"PK\x03\x04\x14", "a.csv is a zip archive or an Excel file; unpack it, or save it as CSV."),
    ("a.json", b"\x28\xb5\x2f\xfd\x04", "a.json is packed with zstd; unpack it."),
    ("a.jsonl", b"BZh91AY", "a.jsonl is packed with bzip2; unpack it."),
    ("a.json", b"ARROW1\0\0", "a.json is an Arrow file; save it as Parquet."),
    ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\n", "a.jsonl is a pointer of Git LFS in place of the"),
    ("a.json", b"\n<!DOCTYPE html>\n<html>", "a.json is a web page in place of the file; download the file itself."),
    ("a.csv", b"<HTML><body>404", "a.csv is a web page in place of the file"),
    ("a.jsonl.gz", gzip.compress(b"<!doctype html>"), "a.jsonl.gz is a web page in place of the file"),
    (
        "a.jsonl",
        b"{'prompt': 'q', 'completion': 'a'}\n",
        "a.jsonl, line 1: this is not valid JSON .*how Python shows lists and dicts; wri",
    ),
    (
        "a.jsonl",
        GOOD.strip().encode() + b",\n",
        "a.jsonl, line 1: this is not valid JSON .*put no comma after an object",
    ),
    (
        "a.jsonl",
        b'{\n "prompt": "q"\n}\n',
        "a.jsonl, line 1: this is not valid JSON .*write each object on one line, or",
    ),
    (
        "a.csv",
        b"prompt\tcompletion\nq\ta\n",
        "a.csv, line 1: the columns are separated by tabs but must be by a comma; name the file .tsv",
    ),
]


@pytest.mark.parametrize("name,content,sentence", OTHER_CONTENT, ids=[str(i) for i in range(len(OTHER_CONTENT))])
def test_a_file_of_another_kind_than_its_name_says_is_told_by_its_content(name, content, sentence, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"^{sentence}"):
        read(tmp_path / name)


@pytest.mark.parametrize("name,content,sentence", BAD, ids=[f"{i}-{bad[0]}" for i, bad in enumerate(BAD)])
def test_bad_data_get_one_sentence(name, content, sentence, tmp_path):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=sentence) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith("a.") and message.endswith(".") and "\n" not in message


def test_a_missing_file_gets_one_sentence(tmp_path):
    with pytest.raises(DataError, match=r"There is no file .*missing\.jsonl; check the path"):
        read(tmp_path / "missing.jsonl")
    with pytest.raises(DataError, match=r"There is no file .*missing; data files end in"):
        read(tmp_path / "missing")


BAD_COLUMNS = [
    ({"prompt": "q", "completion": "answer"}, "line 1: there is no column `q`, which the flags name; the columns are"),
    ({"messages": "talk"}, "line 1: there is no column `talk`"),
    ({"text": "story"}, "line 1: there is no column `story`"),
    ({"prompt": "question", "completion": "answer", "system": "s"}, "line 1: there is no column `s`, which the flags"),
    ({"messages": "a", "prompt": "b"}, "--messages-column must be used alone"),
    ({"text": "a", "prompt": "b", "completion": "c"}, "--text-column must be used alone"),
    ({"text": "a", "system": "b"}, "--text-column must be used alone"),
    ({"prompt": "a"}, "Name both --prompt-column and --completion-column"),
    ({"input": "a"}, "Name both --prompt-column and --completion-column"),
]


@pytest.mark.parametrize("columns,sentence", BAD_COLUMNS)
def test_bad_column_flags_get_one_sentence(columns, sentence, tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"question": "q", "answer": "a"}])
    with pytest.raises(TrainingError, match=sentence):
        read(path, Columns(**columns))
