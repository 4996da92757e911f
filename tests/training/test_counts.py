# SPDX-License-Identifier: Apache-2.0
"""What is said of the data before training: counts, what is not used, duplicates, and the first example of all."""

from __future__ import annotations

import io
import json

import pytest
from accelerate.data_loader import SeedableRandomSampler
from rich.console import Console

from slim_core.training.encoding import ExampleEncoder
from slim_core.training.examples import load_examples
from slim_core.training.report import describe_data, print_data
from tests.conftest import tiny_llama
from tests.training.conftest import CHATML, PAIRS, settings, small_tokenizer, write_jsonl


ROWS = [{"prompt": question, "completion": answer} for question, answer in PAIRS]


def loaded(tmp_path, train, validation=None, template=CHATML, **changes):
    """The examples of a run, what is printed of them, and what goes into the record."""
    files = [write_jsonl(tmp_path / f"{name}.jsonl", rows) for name, rows in train.items()]
    options = {"data": [str(file) for file in files], "validation_share": 0.0} | changes
    if validation is not None:
        options["validation"] = [str(write_jsonl(tmp_path / "held.jsonl", validation))]
    asked = settings("b", files[0], tmp_path / "o")
    asked = type(asked)(**(vars(asked) | options))
    encoder = ExampleEncoder(small_tokenizer(template))
    examples = load_examples(asked, encoder, tiny_llama(vocab_size=320, max_position_embeddings=64).config)
    out = io.StringIO()
    print_data(Console(file=out, width=300), examples, encoder)
    return examples, out.getvalue(), describe_data(examples, encoder)


# training rows by file, validation rows, counts for each source (duplicates, in both), of all
COUNTS = [
    ({"a": ROWS}, None, [(0, 0)], (0, 0)),
    ({"a": ROWS + ROWS[:3]}, None, [(3, 0)], (3, 0)),
    ({"a": ROWS[:4], "b": ROWS[2:6]}, None, [(0, 0), (2, 0)], (2, 0)),
    ({"a": ROWS[:1] * 5}, None, [(4, 0)], (4, 0)),
    ({"a": ROWS[:10]}, ROWS[8:12], [(0, 2), (0, 2)], (0, 2)),
    ({"a": ROWS[:10] + ROWS[:1]}, ROWS[:1] * 2 + ROWS[12:], [(1, 2), (1, 2)], (1, 2)),
    # Another question with the same answer is another example; another unused column is not.
    ({"a": [ROWS[0], ROWS[0] | {"prompt": "Else?"}, ROWS[0] | {"id": 3}]}, None, [(1, 0)], (1, 0)),
]


@pytest.mark.parametrize("train,validation,sources,whole", COUNTS)
def test_duplicates_are_counted_for_each_source_and_in_all(train, validation, sources, whole, tmp_path):
    examples, shown, record = loaded(tmp_path, train, validation)
    names = ("duplicates", "in_training_and_validation")
    assert [tuple(source[name] for name in names) for source in record["sources"]] == sources
    assert (record["duplicates_in_training"], record["in_training_and_validation"]) == whole
    for (count, _), source in zip(sources, record["sources"], strict=True):
        said = f"{source['name']}: {source['records']} records for {source['use']}"
        assert said + (f", {count} the same as an earlier one" if count else "\n") in shown
    shared = f"{whole[1]} of {len(examples.validation)} validation examples are also in the training data"
    assert (shared in shown) == bool(whole[1])
    json.dumps(record)


def test_copies_that_a_split_parts_are_counted(tmp_path):
    _, shown, record = loaded(tmp_path, {"a": ROWS[:1] * 10}, validation_share=0.3)
    assert record["in_training_and_validation"] == 3
    assert "3 of 3 validation examples are also in the training data" in shown
    assert record["sources"][0]["in_training_and_validation"] == 10


def test_what_is_not_used_is_listed_and_recorded(tmp_path):
    rows = [row | {"id": i, "[red]note[/red]": "x"} for i, row in enumerate(ROWS)]
    _, shown, record = loaded(tmp_path, {"[bold]a[bold] :smile:": rows})
    assert record["sources"][0]["unused_columns"] == ["id", "[red]note[/red]"]
    assert "[bold]a[bold] :smile:.jsonl: 24 records for training; not used: id, [red]note[/red]\n" in shown


def test_of_plain_text_no_template_is_told(tmp_path):
    rows = [{"text": question} for question, _ in PAIRS]
    _, shown, record = loaded(tmp_path, {"a": rows}, template=None)
    assert record["template"] == "none" and "template" not in shown.lower()
    _, shown, record = loaded(tmp_path, {"a": ROWS}, template=None)
    assert record["template"] == "fallback" and "The tokenizer has no chat template" in shown


def test_codes_that_a_terminal_would_obey_are_shown_as_escapes(tmp_path):
    rows = [{"prompt": "q \x1b[31m", "completion": "a \x1b]0;title\x07 \u202eb"}] * 2
    _, shown, _ = loaded(tmp_path, {"a": rows})
    assert r"\x1b[31m" in shown and r"\x1b]0;title" in shown and r"\u202e" in shown
    assert not {"\x1b", "\x07", "\u202e"} & {*shown}


@pytest.mark.parametrize("seed", [0, 1, 42])
def test_the_first_example_shown_is_the_first_that_is_trained_on(seed, tmp_path):
    examples, shown, _ = loaded(tmp_path, {"a": ROWS}, seed=seed, validation_share=0.1)
    first = next(iter(SeedableRandomSampler(examples.train, data_seed=seed)))
    assert examples.first == examples.train[first]
    assert f"First example ({examples.train[first].place}), as the model sees it" in shown
