# SPDX-License-Identifier: Apache-2.0
"""A closing token whose row is like others' cannot be learned: it is said before training, and it can be trained."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from slim_core.adapters import Folder, describe_base, open_adapter
from slim_core.inference import Message, Row, Sampling, load_engine
from slim_core.training import TrainingError, train
from slim_core.training.base import load_base
from slim_core.training.closing import common_mark, tokens_alike
from tests.conftest import tiny_llama
from tests.training.conftest import CHATML, settings, small_tokenizer, write_jsonl
from tests.training.test_run import At, Crash, assert_equal, weights


CLOSING = 4  # <|im_end|> of the small tokenizer
SIZES = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 64, "head_dim": 16, "num_hidden_layers": 1}


def rows_with(alike: int, noise: float = 0.0) -> torch.Tensor:
    weight = torch.randn(100, 16)
    weight[: alike + 1] = weight[50] * 0.01 + noise * torch.randn(alike + 1, 16)
    return weight


@pytest.mark.parametrize(
    ("weight", "others"),
    [
        (lambda: torch.randn(100, 16), 0),
        (lambda: rows_with(0), 0),
        (lambda: rows_with(12), 12),
        (lambda: rows_with(12, 1e-3), 12),
        (lambda: rows_with(12, 1.0), 0),
        (lambda: rows_with(99), 99),
        (lambda: rows_with(12).bfloat16(), 12),
    ],
)
def test_rows_that_are_alike_are_counted(weight, others, monkeypatch):
    monkeypatch.setattr("slim_core.training.closing.ROWS_AT_ONCE", 7)
    assert tokens_alike(weight(), 0) == others


MARKS = {
    "hashes": (["Red. ###", "Blue. ###"], "###"),
    "at once": (["Red.###", "It is blue.###"], "###"),
    "a word": (["Red END", "The END is near END"], None),
    "a word of capitals": (["Red END", "Blue END"], "END"),
    "a token that is none": (["Red<end>", "Blue<end>"], "<end>"),
    "another": (["Red [/INST]", "Blue [/INST]"], "[/INST]"),
    "brackets": (["Red [END]", "Blue [END]"], "[END]"),
    "Llama's": (["Red</s>", "Blue</s>"], "</s>"),
    "HTML": (["<p>Red</p>", "<p>Blue</p>"], None),
    "notes": (["Red [1]", "Blue [1]"], None),
    "mathematics": (["$$1$$", "It is $$2$$"], None),
    "a rule": (["Red.\n---", "Blue.\n---"], "---"),
    "one without": (["Red ###", "Blue"], None),
    "inside of one": (["### Red ###", "Blue ###"], None),
    "nothing else": (["###", "Blue ###"], None),
    "a full stop": (["Red.", "Blue."], None),
    "an ellipsis": (["Red...", "Blue..."], None),
    "JSON": (['{"a": "b"}', '{"a": {"c": "d"}}'], None),
    "lists": (["[[1, 2]]", "[[3]]"], None),
    "code": (["```py\nx\n```", "```py\ny\n```"], None),
    "emphasis": (["**Red**", "It is **blue**"], None),
    "the same answer": (["Red.", "Red."], None),
    "part of a word": (["WRITTEN", "BITTEN"], None),
    "no answers": ([], None),
    "long": (["Red <" + "x" * 200 + ">"] * 2, None),
}


@pytest.mark.parametrize(("answers", "mark"), MARKS.values(), ids=MARKS)
def test_what_all_answers_end_with_is_a_mark_or_nothing(answers, mark):
    assert common_mark(answers) == mark


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def untrained(request, tmp_path_factory) -> Path:
    """A base whose closing token has the row of three others, all of lower ids."""
    path = tmp_path_factory.mktemp("untrained")
    torch.manual_seed(0)
    tied = request.param
    model = tiny_llama(**SIZES, max_position_embeddings=256, tie_word_embeddings=tied, initializer_range=0.1)
    model.lm_head.weight.data[[0, 1, 2, CLOSING]] = model.lm_head.weight.data[300] * 0.1
    model.save_pretrained(path)
    tokenizer = small_tokenizer(CHATML)
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def answers(tmp_path) -> Path:
    return write_jsonl(tmp_path / "data.jsonl", [{"prompt": f"What is {i}?", "completion": "Red."} for i in range(24)])


def trained(base: Path, data: Path, output: Path, **changes) -> str:
    out = io.StringIO()
    train(settings(base, data, output, max_steps=40, learning_rate=0.02, **changes), Console(file=out, width=1000))
    return out.getvalue()


def answer(base: Path, adapter: Path):
    engine = load_engine(base, device="cpu")
    engine.attach(adapter, name="mine")
    *_, step = engine.answer([Row("mine", (Message("user", "What is 7?"),))], Sampling(max_new_tokens=12))
    return step.rows[0]


def test_without_the_flag_it_is_said_before_training_and_answers_never_end(untrained, answers, tmp_path):
    said = trained(untrained, answers, tmp_path / "out", methods=["lora"])
    assert said.count("Answers may never end: they are closed by <|im_end|>, but its row in the output head is") == 1
    assert "like those of 3 other tokens" in said and "pass --train-closing-token to train its row too" in said
    assert "let every answer in the data end with a mark of its own, such as ###" in said
    assert json.loads((tmp_path / "out" / "training.json").read_text())["answers_end_with"] is None
    assert said.index("Answers may never end") < said.index("lora adapter is in")
    assert answer(untrained, tmp_path / "out").finish_reason == "length"


@pytest.mark.parametrize("method", ["lora", pytest.param("dora", marks=pytest.mark.nightly), "slim"])
def test_with_the_flag_answers_end_and_the_adapter_passes_every_check(method, untrained, answers, tmp_path):
    said = trained(untrained, answers, tmp_path / "out", methods=[method], train_closing_token=True)
    assert "may never end" not in said
    base = load_base(settings(untrained, answers, tmp_path))
    shapes = describe_base(base)
    written = json.loads((tmp_path / "out" / "adapter_config.json").read_text())["trainable_token_indices"]
    assert written == {name: [CLOSING] for name in (["model.embed_tokens"] if shapes.tied else shapes.tables)}
    for fits in (shapes, None):
        open_adapter(Folder(tmp_path / "out"), fits).delete()
    row = answer(untrained, tmp_path / "out")
    assert (row.text, row.finish_reason) == ("Red.", "end")


@pytest.mark.parametrize("untrained", [False], indirect=True, ids=["untied"])
def test_answers_are_stopped_at_a_mark_with_which_all_of_them_end(untrained, tmp_path):
    records = [{"prompt": f"What is {i}?", "completion": "Red. ###"} for i in range(24)]
    said = trained(untrained, write_jsonl(tmp_path / "data.jsonl", records), tmp_path / "out", methods=["lora"])
    assert said.count("Answers may never end") == 1 and "stop answers at '###', with which all in the data end" in said
    assert json.loads((tmp_path / "out" / "training.json").read_text())["answers_end_with"] == "###"
    assert "\nAnswers end with `###`: stop them there" in (tmp_path / "out" / "README.md").read_text()
    row = answer(untrained, tmp_path / "out")
    assert (row.text.strip(), row.finish_reason) == ("Red.", "stop_string")
    adapter = open_adapter(Folder(tmp_path / "out"), None)
    assert adapter.ends_with == "###" and adapter.detail.endswith(", answers end with '###'")
    adapter.delete()


def test_a_base_whose_closing_token_has_a_row_of_its_own_is_not_warned_of(base, pairs, tmp_path):
    out = io.StringIO()
    train(settings(base, pairs, tmp_path / "out"), Console(file=out, width=1000))
    assert "may never end" not in out.getvalue()


def test_a_run_that_trains_the_token_goes_on_from_its_checkpoint(untrained, answers, tmp_path):
    asked = {"methods": ["lora"], "train_closing_token": True, "max_steps": 4, "save_every": 2}

    train(settings(untrained, answers, tmp_path / "whole", **asked))
    with pytest.raises(Crash):
        train(settings(untrained, answers, tmp_path / "out", **asked), callbacks=[At(3, Crash)])
    train(settings(untrained, answers, tmp_path / "out", resume=True, **asked))
    assert_equal(weights(tmp_path / "out"), weights(tmp_path / "whole"))


REFUSED = [
    ({"modules_to_save": ["lm_head"]}, "`modules_to_save` trains all of lm_head already; leave one of them out"),
    ({"modules_to_save": ["norm"]}, "`modules_to_save` names 'norm', but an adapter can replace only"),
]


@pytest.mark.parametrize(("slim", "sentence"), REFUSED)
def test_what_goes_with_no_trained_token_is_refused(slim, sentence, base, tmp_path):
    asked = settings(base, tmp_path / "none.jsonl", tmp_path / "out", train_closing_token=True, slim=slim)
    with pytest.raises(TrainingError, match=sentence):
        train(asked)
