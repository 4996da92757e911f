# SPDX-License-Identifier: Apache-2.0
"""Every format gives the same records, each with its place, and nothing is dropped without being counted."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from slim_core.training.data import read_source, to_conversations
from slim_core.training.files import DataSource, read_file
from slim_core.training.settings import Columns


RECORDS = [
    {"prompt": "Two\nlines, and a comma", "completion": 'He said "no".'},
    {"prompt": "Ünïcode \u2028 and 日本", "completion": "{braces}; [brackets]\ttab"},
    {"prompt": "  spaces ", "completion": "x" * 200_000},
]


def write_jsonl(path: Path) -> None:
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in RECORDS), encoding="utf-8")


def write_crlf(path: Path) -> None:
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(json.dumps(r) for r in RECORDS).encode())


def write_json(path: Path) -> None:
    path.write_text(json.dumps(RECORDS, indent=2), encoding="utf-8")


def write_csv(path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, RECORDS[0], delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(RECORDS)


def write_parquet(path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(RECORDS), path)


WRITERS = {
    "a.jsonl": write_jsonl,
    "bom-and-crlf.jsonl": write_crlf,
    "a.ndjson": write_jsonl,
    "a.json": write_json,
    "a.csv": write_csv,
    "a.tsv": write_csv,
    "a.parquet": write_parquet,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_records(name, tmp_path):
    WRITERS[name](tmp_path / name)
    source = read_file(tmp_path / name)
    assert [record.fields for record in source.records] == RECORDS
    assert source.blank == 0
    assert source.fingerprint == {"sha256": hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()}


def test_a_folder_is_read_as_a_data_set(tmp_path, monkeypatch):
    folder = tmp_path / "set"
    folder.mkdir()
    write_parquet(folder / "train.parquet")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    source = read_source(str(folder), split="train", subset=None, revision=None)
    assert [record.fields for record in source.records] == RECORDS
    assert source.records[1].place == "set, train record 2"
    assert source.fingerprint["fingerprint"]


PLACES = {
    "a.jsonl": ('{"a": 1}\n\n  \n{"a": 2}\n', ["line 1", "line 4"], 2),
    "a.json": ('[\n{"a": 1},\n\n{"a":\n2}, {"a": 3}\n]\n', ["line 2", "line 4", "line 5"], 0),
    "a.csv": ('a,b\n1,"x\ny"\n\n2,z\n', ["line 2", "line 5"], 1),
}


@pytest.mark.parametrize("name", PLACES)
def test_each_record_knows_its_line_and_empty_lines_are_counted(name, tmp_path):
    text, lines, blank = PLACES[name]
    (tmp_path / name).write_text(text, encoding="utf-8")
    source = read_file(tmp_path / name)
    assert [record.place for record in source.records] == [f"{name}, {line}" for line in lines]
    assert source.blank == blank


def conversations(source: DataSource) -> list[list[tuple[str, str]]]:
    talks = to_conversations(source.records, Columns())
    return [[(m["role"], m["content"]) for m in c.messages] for c in talks]


def test_messages_are_the_same_from_every_format(tmp_path):
    talks = [
        [{"role": "system", "content": "Be brief."}, *[{"role": r, "content": f"{r}"} for r in ("user", "assistant")]],
        [{"role": r, "content": f"{r} {i}"} for i in (1, 2) for r in ("user", "assistant")],
    ]
    rows = [{"messages": talk} for talk in talks]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "a.json").write_text(json.dumps(rows))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    with (tmp_path / "a.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["messages"], *[[json.dumps(talk)] for talk in talks]])
    expected = [[(m["role"], m["content"]) for m in talk] for talk in talks]
    for name in ("a.jsonl", "a.json", "a.parquet", "a.csv"):
        assert conversations(read_file(tmp_path / name)) == expected, name


LAYOUTS = [
    ({"prompt": "q", "completion": "a", "id": 7}, Columns(), "q", "a"),
    ({"instruction": "q", "input": "more", "output": "a"}, Columns(), "q\n\nmore", "a"),
    ({"instruction": "q", "input": "", "output": "a"}, Columns(), "q", "a"),
    ({"instruction": "q", "input": None, "output": "a"}, Columns(), "q", "a"),
    ({"instruction": "q", "output": "a"}, Columns(), "q", "a"),
    ({"question": "q", "answer": "a"}, Columns(prompt="question", completion="answer"), "q", "a"),
    ({"q": "q", "a": "a", "ctx": "c"}, Columns(prompt="q", completion="a", input="ctx"), "q\n\nc", "a"),
]


@pytest.mark.parametrize("fields,columns,question,answer", LAYOUTS)
def test_every_layout_of_columns_becomes_a_question_and_an_answer(fields, columns, question, answer, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(fields))
    (talk,) = to_conversations(read_file(path).records, columns)
    assert talk.messages == [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    assert talk.place == "a.jsonl, line 1"
