# SPDX-License-Identifier: Apache-2.0
"""What --data names: packed files, patterns, the home folder, data sets of the Hub, and why they cannot be read."""

from __future__ import annotations

import gzip
import hashlib
import json

import pytest

from slim_core.training import Columns, DataError
from slim_core.training.data import to_conversations
from slim_core.training.encoding import ExampleEncoder
from slim_core.training.examples import load_examples
from slim_core.training.files import read_file
from slim_core.training.sources import expand, read_source
from tests.conftest import tiny_llama
from tests.training.conftest import settings, small_tokenizer, write_jsonl
from tests.training.test_files import RECORDS, WRITERS


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_may_be_packed(name, tmp_path):
    WRITERS[name](tmp_path / name)
    packed = tmp_path / f"{name}.gz"
    packed.write_bytes(gzip.compress((tmp_path / name).read_bytes()))
    source = read_file(packed)
    assert [record.fields for record in source.records] == RECORDS
    assert source.records[0].place.startswith(f"{name}.gz, ")
    assert source.fingerprint == {"sha256": hashlib.sha256(packed.read_bytes()).hexdigest()}


@pytest.mark.parametrize("key", ["data", "train", "records", "examples"])
@pytest.mark.parametrize("beside", [{}, {"version": "1.0", "tags": ["x"], "about": {"a": [1]}}])
@pytest.mark.parametrize("indent", [None, 1])
def test_records_may_be_the_member_of_an_object(key, beside, indent, tmp_path):
    path = tmp_path / "a.json"
    for whole in (beside | {key: RECORDS}, {key: RECORDS} | beside):
        path.write_text(json.dumps(whole, indent=indent), encoding="utf-8")
        assert [record.fields for record in read_file(path).records] == RECORDS


def test_records_in_an_object_know_their_lines(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"version": 1,\n"data": [\n{"a": 1},\n\n{"a":\n2}, {"a": 3}]\n}')
    assert [record.place for record in read_file(path).records] == [f"a.json, line {i}" for i in (3, 5, 6)]


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[31mb", "a\udcffb"])
@pytest.mark.parametrize("ending", [".tsv", ".tsv.gz", ".jsonl", ".csv"])
def test_names_that_cannot_be_printed_are_escaped(name, ending, tmp_path):
    path = tmp_path / (name + ending)
    text = {".jsonl": '{"a": 1}\n'}.get(ending, "a\tb\n1\t2\n" if "tsv" in ending else "a,b\n1,2\n").encode()
    path.write_bytes(gzip.compress(text) if ending.endswith(".gz") else text)
    source = read_file(path)
    assert source.name.isprintable() and source.records[0].place.isprintable()
    assert list(source.records[0].fields) == (["a"] if ending == ".jsonl" else ["a", "b"])
    source.name.encode()


def test_patterns_and_the_home_folder_are_read_inside_of_quotes(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "deep").mkdir()
    names = ["b.jsonl", "a.jsonl", "deep/c.jsonl", "[x].jsonl"]
    for name in names:
        write_jsonl(tmp_path / name, [{"prompt": name, "completion": "a"}])
    for pattern, matching in {
        f"{tmp_path}/*.jsonl": ["[x].jsonl", "a.jsonl", "b.jsonl"],
        f"{tmp_path}/**/*.jsonl": ["[x].jsonl", "a.jsonl", "b.jsonl", "deep/c.jsonl"],
        f"{tmp_path}/[ab].jsonl": ["a.jsonl", "b.jsonl"],
        f"{tmp_path}/?.jsonl": ["a.jsonl", "b.jsonl"],
        f"{tmp_path}/[x].jsonl": ["[x].jsonl"],
        "~/a.jsonl": ["a.jsonl"],
        "~/[ab].jsonl": ["a.jsonl", "b.jsonl"],
    }.items():
        assert expand(pattern) == [f"{tmp_path}/{name}" for name in matching]
    assert expand("tatsu-lab/alpaca") == ["tatsu-lab/alpaca"]
    assert expand("missing.jsonl") == ["missing.jsonl"]


def test_every_file_of_a_pattern_is_a_source_of_its_own(tmp_path):
    for name in ("b", "a"):
        write_jsonl(tmp_path / f"{name}.jsonl", [{"prompt": f"{name}{i}", "completion": "a"} for i in range(3)])
    config = tiny_llama(vocab_size=320, max_position_embeddings=64).config
    asked = settings("b", tmp_path / "*.jsonl", tmp_path / "o", validation_share=0.0)
    examples = load_examples(asked, ExampleEncoder(small_tokenizer()), config)
    assert [source["name"] for source in examples.sources] == ["a.jsonl", "b.jsonl"] and len(examples.train) == 6


PATTERNS = [
    ("{}/*.jsonl", "No file matches the pattern .*; check"),
    ("~nobody-here/a", "a home folder that does not exist"),
]


@pytest.mark.parametrize("pattern,sentence", PATTERNS)
def test_patterns_that_fit_nothing_get_one_sentence(pattern, sentence, tmp_path):
    with pytest.raises(DataError, match=sentence):
        expand(pattern.format(tmp_path))


# -- the Hub -----------------------------------------------------------------------------------------------------


class DatasetNotFoundError(FileNotFoundError):
    """As the class of `datasets` that is called so."""


class ConnectError(Exception):
    """As httpx's."""


def because(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


REACH = r"The Hub could not be reached for the data set a/b \(.+\); try again with a connection, or give a data file"
ERRORS = [
    (ConnectionError("Couldn't reach 'a/b' on the Hub (OfflineModeIsEnabled)"), REACH),
    (ConnectError("no name"), REACH),
    (TimeoutError("slow"), REACH),
    (because(ValueError("Not in the cache"), ConnectError("no name")), REACH),
    (
        DatasetNotFoundError("Dataset 'a/b' doesn't exist on the Hub or cannot be accessed."),
        r"There is no data set a/b on the Hub that you may read \(.+\); check the id, log in with `hf auth login`",
    ),
    (
        ValueError('Unknown split "x". Should be one of [y]'),
        r"The data set a/b \(split train\) cannot be loaded: Un",
    ),
    (
        ValueError("Config name is missing."),
        "cannot be loaded: Config name is missing; give another --split or",
    ),
]


@pytest.mark.parametrize("error,sentence", ERRORS)
def test_the_sentence_says_why_a_data_set_cannot_be_loaded(error, sentence, monkeypatch):
    def load(*args, **kwargs):
        raise error

    monkeypatch.setattr("datasets.load_dataset", load)
    with pytest.raises(DataError, match=sentence) as caught:
        read_source("a/b", split="train", subset=None, revision=None)
    assert "such as" not in str(caught.value)


def test_a_data_set_that_is_there_goes_the_same_way_as_files(monkeypatch):
    from datasets import Dataset

    rows = [{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}]
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **kwargs: Dataset.from_list(rows))
    source = read_source("a/b", split="train", subset=None, revision=None)
    (made,) = to_conversations(source.records, Columns())
    assert [message["content"] for message in made.messages] == ["q", "a"] and made.place == "a/b, train record 1"
