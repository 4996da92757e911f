# SPDX-License-Identifier: Apache-2.0
"""Data files to records. JSONL, JSON and CSV are read here, since libraries do not say which line is wrong."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ..extras import lacking
from ..outside.errors import first_line, printable
from .errors import DataError
from .parsing import NO_ARRAY, as_json, json_items, parse_json


EXAMPLE = '{"prompt": "…", "completion": "…"}'


class Record(NamedTuple):
    """One record of a data source.

    Attributes:
        fields: its columns.
        place: where it stands, such as "my.jsonl, line 3".
    """

    fields: dict[str, Any]
    place: str


@dataclass(frozen=True)
class DataSource:
    """One data source, read completely.

    Attributes:
        name: the file's name, or the id of the data set.
        records: all its records, in order.
        blank: empty lines that were passed over.
        fingerprint: what identifies the content: `sha256` of a file; fingerprint and revision of a data set.
    """

    name: str
    records: list[Record]
    blank: int
    fingerprint: dict[str, str | None]


def kind_of(path: Path) -> str | None:
    """The extension that says how to read a file, without .gz; None if it is unknown."""
    plain = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    return plain.suffix.lower() if plain.suffix.lower() in KINDS else None


def read_file(path: Path, example: str = EXAMPLE) -> DataSource:
    """Read a file according to its extension.

    Args:
        path: of the file.
        example: a record as it should be, for the sentence on one that is not.

    Raises:
        DataError: if the file is missing, empty, of another kind, or has a line that cannot be read.
    """
    kind, name = kind_of(path), printable(path.name)
    if kind is None:
        raise DataError(
            f"{name} has an unknown file type; data files end in {ENDINGS}, or name a data set on the Hub."
        )
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"There is no file {printable(str(path))}; check the path.") from None
    except OSError as error:
        raise DataError(
            f"{printable(str(path))} cannot be read: {error.strerror}; name a readable data file."
        ) from None
    fingerprint: dict[str, str | None] = {"sha256": hashlib.sha256(content).hexdigest()}
    if path.suffix.lower() == ".gz" and content:
        content = _unpacked(name, content)
        if content.startswith(GZIP):
            raise DataError(f"{name} is packed with gzip twice; unpack it once.")
    if kind != ".parquet":
        _check_other_content(name, content)
    if not content.strip():
        raise DataError(f"{name} is empty; it needs at least one record, such as {example}.")
    records, blank = JSON[kind](name, content, example) if kind in JSON else TABLES[kind](name, content)
    if not records:
        raise DataError(f"{name} has no record; it needs at least one, such as {example}.")
    return DataSource(name, records, blank, fingerprint)


GZIP = b"\x1f\x8b"
# What files begin with that are none of their ending: what they are, and what to do.
OTHER_CONTENT = (
    (GZIP, "is packed with gzip; let its name end in .gz"),
    (b"PAR1", "is a Parquet file; let its name end in .parquet"),
    (b"PK\x03\x04", "is a zip archive or an Excel file; unpack it, or save it as CSV"),
    (b"\x28\xb5\x2f\xfd", "is packed with zstd; unpack it"),
    (b"BZh", "is packed with bzip2; unpack it"),
    (b"\xfd7zXZ", "is packed with xz; unpack it"),
    (b"7z\xbc\xaf", "is a 7z archive; unpack it"),
    (b"Rar!", "is a RAR archive; unpack it"),
    (b"SQLite format 3", "is a database of SQLite; export its table as CSV"),
    (b"\xd0\xcf\x11\xe0", "is an old Excel file; save it as CSV"),
    (b"\x80\x04\x95", "is a Python pickle, which can run code; write it as JSONL"),
    (b"%PDF-", "is a PDF file; write its text as JSONL"),
    (b"{\\rtf", "is rich text; save it as plain text"),
    (b"<?xml", "is XML in place of the file; download the file itself"),
    (b"ARROW1", "is an Arrow file; save it as Parquet"),
    (b"version https://git-lfs", "is a pointer of Git LFS in place of the file; fetch it with git lfs pull"),
    (b"<!doctype html", "is a web page in place of the file; download the file itself"),
    (b"<html", "is a web page in place of the file; download the file itself"),
)


def _check_other_content(name: str, content: bytes) -> None:
    begin = content[:64].lstrip().lower()
    for mark, description in OTHER_CONTENT:
        if begin.startswith(mark.lower()):
            raise DataError(f"{name} {description}.")


def _unpacked(name: str, content: bytes) -> bytes:
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{name} cannot be unpacked ({first_line(error)}); pack the file again with gzip.") from None


def utf8_text(name: str, content: bytes) -> str:
    """The text of a file.

    Raises:
        DataError: with its place, if it is not UTF-8 or no text.
    """
    if content.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        raise DataError(f"{name} is saved as UTF-32; save it as UTF-8.")
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{name} is saved as UTF-16; save it as UTF-8.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{name}, line {line}: byte {error.start} is not UTF-8; save the file as UTF-8.") from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(
            f"{name}, line {line}: it contains a NUL byte, so it is damaged or not text; save it as UTF-8."
        )
    return text


def _object(value: Any, place: str, example: str) -> Record:
    if not isinstance(value, dict):
        raise DataError(f"{place}: a record must be a JSON object such as {example}, not {as_json(value)}.")
    return Record(value, place)


def _read_jsonl(name: str, content: bytes, example: str) -> tuple[list[Record], int]:
    records, blank = [], 0
    # Not splitlines(), which also breaks at characters that JSON allows inside of a text.
    # Inside of a text, JSON has no line end but as an escape.
    lines = utf8_text(name, content).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    for number, line in enumerate(lines, 1):
        # Files that were put one behind the other keep their marks.
        line = line.lstrip("\ufeff")
        if not line.strip():
            blank += number < len(lines)
            continue
        remedy = f"each line must be one object such as {example}"
        if line.lstrip().startswith("["):
            remedy = "name the file .json if it is one JSON array"
        elif line.rstrip().endswith("},"):
            remedy = "put no comma after an object, each line is one"
        elif number == 1 and line.strip() == "{":
            remedy = "write each object on one line, or name the file .json and put the objects between [ and ]"
        place = f"{name}, line {number}"
        records.append(_object(parse_json(line, place, remedy), place, example))
    return records, blank


def _read_json(name: str, content: bytes, example: str) -> tuple[list[Record], int]:
    text = utf8_text(name, content)
    try:
        return [_object(value, f"{name}, line {line}", example) for value, line in json_items(text, name)], 0
    except json.JSONDecodeError as error:
        if error.msg == NO_ARRAY and text.lstrip().startswith("{"):
            raise DataError(
                f"{name}, line 1: the file is not one JSON array{_with_members(text)}; put the records between [ and "
                f"], each an object such as {example}, or name the file .jsonl if each line is one object."
            ) from None
        raise DataError(
            f"{name}, line {error.lineno}: this is not valid JSON ({error.msg} at character {error.colno}); the file "
            f"must be one array of objects such as [{example}]."
        ) from None


def _with_members(text: str) -> str:
    """What a file has instead of an array, if it is one object."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return ""
    names = [f"`{printable(str(key)[:40])}`" for key in [*value][:3]] if isinstance(value, dict) else []
    more = ", …" if len(value) > len(names) else ""
    return f" but one object with {', '.join(names)}{more}" if names else ""


def _read_csv(name: str, content: bytes, delimiter: str = ",") -> tuple[list[Record], int]:
    # A text may be longer than the module's usual limit of 131,072 characters.
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(io.StringIO(utf8_text(name, content), newline=""), delimiter=delimiter, strict=True)
    records, blank, last_line = [], 0, 0
    header: list[str] | None = None
    try:
        for row in reader:
            # A quoted text may span lines: the record begins after the line where the one before it ended.
            place, last_line = f"{name}, line {last_line + 1}", reader.line_num
            if not row:
                blank += 1
            elif header is None:
                header = _header(row, place, delimiter)
            elif len(row) != len(header):
                raise DataError(
                    f"{place}: {len(row)} fields, but the header has {len(header)} ({', '.join(header)}); put a text "
                    f'that contains a {"tab" if delimiter != "," else "comma"} or a line break between " and ".'
                )
            elif any(cell.startswith(' "') for cell in row):
                raise DataError(
                    f'{place}: a field begins with a space before its ", which would become a part of the text; put '
                    "the separator directly before the quotation mark."
                )
            else:
                records.append(Record(dict(zip(header, row, strict=True)), place))
    except csv.Error as error:
        raise DataError(
            f'{name}, line {last_line + 1}: this is not valid CSV ({first_line(error)}); close each " and write a " '
            'inside a text as "".'
        ) from None
    return records, blank


def _header(row: list[str], place: str, delimiter: str) -> list[str]:
    names = [cell.strip() for cell in row]
    # What a table of pandas numbers its rows with.
    if len(names) > 1 and not names[0]:
        names[0] = "Unnamed: 0"
    separator = "a tab" if delimiter == "\t" else "a comma"
    for mark, shown, remedy in (
        (";", "by ;", "save the file with commas"),
        ("|", "by |", "save the file with commas"),
        ("\t", "by tabs", "name the file .tsv, or save it with commas"),
        (",", "by commas", "name the file .csv"),
    ):
        if len(names) == 1 and mark in names[0]:
            raise DataError(f"{place}: the columns are separated {shown} but must be by {separator}; {remedy}.")
    if "" in names or len(set(names)) < len(names):
        raise DataError(
            f"{place}: the first line must name each column once, such as prompt{delimiter}completion, not "
            f"{as_json(delimiter.join(row))}."
        )
    return names


def _read_parquet(name: str, content: bytes) -> tuple[list[Record], int]:
    if sentence := lacking("pyarrow", f"{name}, a Parquet file,"):
        raise DataError(sentence)
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(content))
    except pyarrow.ArrowException as error:
        raise DataError(f"{name} cannot be read as Parquet ({first_line(error)}); write the file again.") from None
    columns = {}
    for column, values in zip(table.column_names, table.columns, strict=True):
        try:
            columns[column] = values.to_pylist()
        except UnicodeDecodeError:
            raise DataError(f"{name}: a text in it is not UTF-8; write the file again with texts in UTF-8.") from None
        except Exception as error:  # dates beyond Python's, time zones that nobody knows
            raise DataError(
                f"{name}: the column `{printable(column)}` ({values.type}) cannot be read ({first_line(error)}); "
                "remove it, or write it as text."
            ) from None
    rows = (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
    return [Record(row, f"{name}, record {number}") for number, row in enumerate(rows, 1)], 0


JSON: dict[str, Callable[[str, bytes, str], tuple[list[Record], int]]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
}
TABLES: dict[str, Callable[[str, bytes], tuple[list[Record], int]]] = {
    ".csv": _read_csv,
    ".tsv": partial(_read_csv, delimiter="\t"),
    ".parquet": _read_parquet,
}
KINDS = (*JSON, *TABLES)
ENDINGS = f"{', '.join(KINDS)}, each also with .gz"
