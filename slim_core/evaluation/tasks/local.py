# SPDX-License-Identifier: Apache-2.0
"""The paper's data sets as local files, with the same columns as on the Hub."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ...outside.errors import with_type
from ...training.errors import DataError
from ...training.files import Record, read_file, utf8_text


Fields = dict[str, Any]


@dataclass(frozen=True)
class DataSetFiles:
    """Where a data set is in the folder, and how it is read.

    Attributes:
        where: the files, for people.
        read: the records of a split in a folder.
        splits: whether the folder has the training questions too. Otherwise the same records are read for any split.
    """

    where: str
    read: Callable[[Path, str], list[Record]]
    splits: bool = False


def _path(folder: Path, *parts: str) -> Path:
    path = folder.joinpath(*parts)
    if not path.is_file():
        raise DataError(f"There is no {'/'.join(parts)} in {folder}.")
    return path


def _lines(path: Path) -> list[str]:
    # Not splitlines(), which also breaks at characters that occur inside texts.
    return utf8_text(path.name, path.read_bytes()).rstrip("\n").replace("\r\n", "\n").split("\n")


def _records(path: Path, change: Callable[[Fields], Fields] = lambda fields: fields) -> list[Record]:
    """The records of a file, with their columns changed."""
    records = []
    for fields, place in read_file(path).records:
        try:
            records.append(Record(change(fields), place))
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise DataError(f"{place}: this is not a record of the expected data set ({with_type(error)}).") from None
    return records


def _labelled(folder: Path, texts: tuple[str, ...], labels: tuple[str, ...], column: str) -> list[Record]:
    """Records whose labels are in a separate file, line by line."""
    records, right = read_file(_path(folder, *texts)).records, _lines(_path(folder, *labels))
    if len(records) != len(right):
        raise DataError(f"{'/'.join(texts)} has {len(records)} records, but {'/'.join(labels)} has {len(right)}.")
    if not all(label.strip().isdecimal() for label in right):
        raise DataError(f"{'/'.join(labels)} must have one number per line.")
    pairs = zip(records, right, strict=True)
    return [Record(fields | {column: int(label)}, place) for (fields, place), label in pairs]


def _choices(texts: list[str], labels: list[str]) -> Fields:
    return {"text": texts, "label": labels}


# -- OpenBookQA: tab-separated, "(A) … (B) …" in one column ------------------------------------------------------


# One of the training questions has "(D)" twice; what follows the second one stays part of the last option.
OPTIONS = re.compile(r".*?\s*\(A\)\s*(.*?)\s*\(B\)\s*(.*?)\s*\(C\)\s*(.*?)\s*\(D\)\s*(.*)")


def _openbookqa(folder: Path, split: str) -> list[Record]:
    file = {"validation": "dev"}.get(split, split) + ".tsv"
    records = []
    lines = _lines(_path(folder, "openbookqa", file))
    for number, line in enumerate(lines[1:], 2):
        cells = line.split("\t")
        options = OPTIONS.fullmatch(cells[2]) if len(cells) == 5 else None
        if options is None:
            raise DataError(f"{file}, line {number}: this is not an OpenBookQA question with options (A) to (D).")
        choices = _choices(list(options.groups()), ["A", "B", "C", "D"])
        fields = {"id": cells[0], "question_stem": cells[1], "choices": choices, "answerKey": cells[4].strip()}
        records.append(Record(fields, f"{file}, line {number}"))
    return records


# -- ARC, and BoolQ without its passages, in the form of LLM-Adapters --------------------------------------------

ASKED = re.compile(
    r".*?question: (?P<question>.*?)\s*\n\s*(?P<options>Answer1: .*?)\s*\n\s*Answer format: .*", re.DOTALL
)


def _arc_fields(fields: Fields) -> Fields:
    match = ASKED.fullmatch(fields["instruction"])
    if match is None:
        raise ValueError("no question with Answer1, Answer2, …")
    parts = re.split(r"\s*Answer(\d): ", match["options"])
    return {
        "question": match["question"].strip(),
        "choices": _choices([option.strip() for option in parts[2::2]], parts[1::2]),
        "answerKey": fields["answer"].removeprefix("answer"),
    }


def _arc(name: str, folder: Path, split: str) -> list[Record]:
    return _records(_path(folder, "llm-adapters", name, f"{split}.json"), _arc_fields)


def _boolq_fields(fields: Fields) -> Fields:
    answer = fields["answer"]
    return fields | {"answer": answer if isinstance(answer, bool) else {"True": True, "False": False}[answer]}


# -- the others --------------------------------------------------------------------------------------------------


def _mmlu(folder: Path, split: str) -> list[Record]:
    split_name = {"validation": "val"}.get(split, split)
    place = folder / "mmlu" / "data" / split_name
    files = sorted(place.glob(f"*_{split_name}.csv"))
    if not files:
        raise DataError(f"There is no mmlu/data/{split_name} with files such as anatomy_{split_name}.csv in {folder}.")
    return [record for file in files for record in _mmlu_file(file, file.name.removesuffix(f"_{split_name}.csv"))]


def _mmlu_file(file: Path, subject: str) -> Iterator[Record]:
    rows = csv.reader(io.StringIO(utf8_text(file.name, file.read_bytes()), newline=""))
    for number, row in enumerate(rows, 1):
        if len(row) != 6 or row[5] not in ("A", "B", "C", "D"):
            raise DataError(f"{file.name}, record {number}: it must be a question, four options and a letter.")
        fields = {"question": row[0], "subject": subject, "choices": row[1:5], "answer": "ABCD".index(row[5])}
        yield Record(fields, f"{file.name}, record {number}")


def _csqa_fields(fields: Fields) -> Fields:
    question = fields["question"]
    options = _choices(
        [option["text"] for option in question["choices"]], [option["label"] for option in question["choices"]]
    )
    return {"question": question["stem"], "choices": options, "answerKey": fields["answerKey"]}


# On the Hub, the beginning is in two parts, the second of which is an incomplete sentence.
BEGUN = re.compile(r"(?P<whole>.*[.!?])\s+(?P<begun>[a-z][^.!?]*)", re.DOTALL)


def _hellaswag_fields(fields: Fields) -> Fields:
    match = BEGUN.fullmatch(fields["ctx"].strip())
    parts = (fields["ctx"], "") if match is None else match.group("whole", "begun")
    return {"ctx_a": parts[0], "ctx_b": parts[1]} | fields | {"label": int(fields["label"])}


def _gsm8k(folder: Path, split: str) -> list[Record]:
    return _records(_path(folder, "gsm8k", f"{split}.jsonl"))


LAYOUTS: dict[str, DataSetFiles] = {
    "openbookqa": DataSetFiles("openbookqa/test.tsv", _openbookqa, splits=True),
    "arc_easy": DataSetFiles("llm-adapters/ARC-Easy/test.json", partial(_arc, "ARC-Easy"), splits=True),
    "arc_challenge": DataSetFiles("llm-adapters/ARC-Challenge/test.json", partial(_arc, "ARC-Challenge"), splits=True),
    "boolq": DataSetFiles(
        "boolq-with-passage/dev.jsonl",
        lambda folder, split: _records(_path(folder, "boolq-with-passage", "dev.jsonl"), _boolq_fields),
    ),
    "hellaswag": DataSetFiles(
        "hellaswag/hellaswag_val.jsonl",
        lambda folder, split: _records(_path(folder, "hellaswag", "hellaswag_val.jsonl"), _hellaswag_fields),
    ),
    "winogrande": DataSetFiles(
        "winogrande/dev.jsonl", lambda folder, split: _records(_path(folder, "winogrande", "dev.jsonl"))
    ),
    "piqa": DataSetFiles(
        "piqa/valid.jsonl and valid-labels.lst",
        lambda folder, split: _labelled(folder, ("piqa", "valid.jsonl"), ("piqa", "valid-labels.lst"), "label"),
    ),
    "social_iqa": DataSetFiles(
        "socialiqa/dev.jsonl and dev-labels.lst",
        lambda folder, split: _labelled(folder, ("socialiqa", "dev.jsonl"), ("socialiqa", "dev-labels.lst"), "label"),
    ),
    "commonsense_qa": DataSetFiles(
        "commonsenseqa/dev_rand_split.jsonl",
        lambda folder, split: _records(_path(folder, "commonsenseqa", "dev_rand_split.jsonl"), _csqa_fields),
    ),
    "mmlu": DataSetFiles("mmlu/data/test/*_test.csv", _mmlu),
    "gsm8k": DataSetFiles(
        "gsm8k/test.jsonl", lambda folder, split: _records(_path(folder, "gsm8k", f"{split}.jsonl"))
    ),
}
