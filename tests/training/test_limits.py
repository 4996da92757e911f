# SPDX-License-Identifier: Apache-2.0
"""Examples that are too long or too few, and a vocabulary that the model lacks."""

from __future__ import annotations

import pytest

from slim_core.training import DataError, TrainingError
from slim_core.training.encoding import ExampleEncoder
from slim_core.training.examples import load_examples
from tests.conftest import tiny_llama
from tests.training.conftest import PAIRS, settings, small_tokenizer, write_jsonl


@pytest.fixture
def config():
    return tiny_llama(vocab_size=320, max_position_embeddings=64).config


@pytest.fixture
def with_long_ones(tmp_path):
    records = [{"prompt": q, "completion": a} for q, a in PAIRS]
    records[5]["completion"] = records[9]["completion"] = "long " * 60
    return write_jsonl(tmp_path / "long.jsonl", records)


def test_longer_examples_stop_the_run_with_their_line_and_number(with_long_ones, config, tmp_path):
    sentence = (
        r"long\.jsonl, line 6: the example has \d+ tokens, but the limit is 64 \(2 of 24 examples are longer\); "
        "shorten it, raise --max-length, or pass --skip-long"
    )
    with pytest.raises(DataError, match=sentence):
        load_examples(settings("b", with_long_ones, tmp_path / "o"), ExampleEncoder(small_tokenizer()), config)


def test_longer_examples_left_out_are_counted_and_nothing_else_is_missing(with_long_ones, config, tmp_path):
    asked = settings("b", with_long_ones, tmp_path / "o", skip_long=True)
    examples = load_examples(asked, ExampleEncoder(small_tokenizer()), config)
    assert (examples.too_long, len(examples.train), len(examples.validation)) == (2, 20, 2)
    assert examples.sources[0]["records"] == 24 and examples.sources[0]["too_long"] == 2
    places = {example.place for example in [*examples.train, *examples.validation]}
    assert places == {f"long.jsonl, line {i}" for i in range(1, 25)} - {"long.jsonl, line 6", "long.jsonl, line 10"}


def test_a_limit_beyond_the_model_all_too_long_and_a_foreign_vocabulary_are_sentences(pairs, config, tmp_path):
    encoder = ExampleEncoder(small_tokenizer())
    with pytest.raises(TrainingError, match="--max-length is 65 tokens, but b reads 64 at most; choose that or less"):
        load_examples(settings("b", pairs, tmp_path / "o", max_length=65), encoder, config)
    with pytest.raises(DataError, match="All training examples are longer than 4 tokens; raise --max-length"):
        load_examples(settings("b", pairs, tmp_path / "o", max_length=4, skip_long=True), encoder, config)
    config.vocab_size = 50
    with pytest.raises(DataError, match=r"pairs\.jsonl, line 1: token \d+ is not in the model's vocabulary of 50"):
        load_examples(settings("b", pairs, tmp_path / "o"), encoder, config)


def test_one_example_cannot_be_split(config, tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "q", "completion": "a"}])
    encoder = ExampleEncoder(small_tokenizer())
    with pytest.raises(DataError, match=r"only one example \(a\.jsonl, line 1\), .* or pass --validation-share 0"):
        load_examples(settings("b", path, tmp_path / "o"), encoder, config)
    assert load_examples(settings("b", path, tmp_path / "o", validation_share=0.0), encoder, config).validation == []
