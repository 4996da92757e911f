# SPDX-License-Identifier: Apache-2.0
"""With which text an adapter's answers end is read of its record, if that says so, and nothing of it is a fault."""

from __future__ import annotations

import json

import pytest

from slim_core.adapters import Folder, Upload, UploadedFile, open_adapter
from slim_core.inference import Message, Row, Sampling, load_engine
from slim_core.outside.record import MOST_ENDING, RECORD, RECORD_BYTES
from tests.inference.conftest import folders


__all__ = ["folders"]

RECORDS = {
    "a mark": ('{"answers_end_with": "###", "curves": [{"loss": 1.0}]}', "###"),
    "none": ('{"answers_end_with": null}', None),
    "an older one": ("{}", None),
    "a number": ('{"answers_end_with": 3}', None),
    "a list": ('{"answers_end_with": ["###"]}', None),
    "empty": ('{"answers_end_with": ""}', None),
    "a blank": ('{"answers_end_with": " "}', None),
    "blanks around": ('{"answers_end_with": " ###"}', None),
    "the longest": (json.dumps({"answers_end_with": "#" * MOST_ENDING}), "#" * MOST_ENDING),
    "too long": (json.dumps({"answers_end_with": "#" * (MOST_ENDING + 1)}), None),
    "half a character": ('{"answers_end_with": "\\ud800"}', None),
    "twice": ('{"answers_end_with": "a", "answers_end_with": "b"}', None),
    "no object": ("[]", None),
    "no JSON": ("{", None),
    "nothing": ("", None),
    "deep": ('{"a": ' + "[" * 10_000 + "]" * 10_000 + "}", None),
    "too large": (" " * RECORD_BYTES + '{"answers_end_with": "###"}', None),
    "a number of thousands of digits": ('{"a": ' + "9" * 5000 + "}", None),
}


@pytest.mark.parametrize("way", ["folder", "upload"])
@pytest.mark.parametrize(("text", "ending"), RECORDS.values(), ids=RECORDS)
def test_a_record_says_how_answers_end_or_nothing(text, ending, way, folders, tmp_path):
    for path in folders.lora.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / RECORD).write_text(text)
    files = tuple(UploadedFile(f"my adapter/{path.name}", path) for path in tmp_path.iterdir())
    adapter = open_adapter(Folder(tmp_path) if way == "folder" else Upload(files), None)
    assert adapter.ends_with == ending
    assert [path.name for path in adapter.folder.iterdir()] == ["adapter_model.safetensors"]
    adapter.delete()


def test_the_ending_ends_the_adapters_answers_and_no_others(folders, tmp_path):
    question = (Message("user", "What is the capital of Peru?"),)
    engine = load_engine(folders.base, lora=folders.lora, device="cpu")
    asked = [Row("base", question), Row("lora", question)]
    *_, plain = engine.answer(asked, Sampling(max_new_tokens=12))
    ending = plain.rows[1].text[-3:].strip()
    for path in folders.lora.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / RECORD).write_text(json.dumps({"answers_end_with": ending}))
    engine = load_engine(folders.base, lora=tmp_path, device="cpu")
    *_, step = engine.answer([*asked, Row("lora", question)], Sampling(max_new_tokens=12))
    assert step.rows[0].text == plain.rows[0].text and step.rows[0].finish_reason == plain.rows[0].finish_reason
    for row in step.rows[1:]:
        assert row.finish_reason == "stop_string" and row.text == plain.rows[1].text.partition(ending)[0]
    assert engine.variants[1].ends_with == ending and ending in engine.variants[1].detail
