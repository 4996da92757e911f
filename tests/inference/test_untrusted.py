# SPDX-License-Identifier: Apache-2.0
"""A visitor's base: what its files can do, and that it leaves everything as it was."""

from __future__ import annotations

import json
import math
import re
import shutil
import threading
from dataclasses import replace

import pytest
from safetensors.torch import load, save

from slim_core.base import sandbox
from slim_core.base.files import base_files
from slim_core.base.loading import read_prompts
from slim_core.inference import BaseChoice, EngineError, Message, Row, switching
from tests.base.test_sandbox import ENDLESS
from tests.inference.conftest import QUESTION, SHORT, ids, last, rows
from tests.inference.test_switching import other, world
from tests.outside.hub_server import Hub, serve
from tests.outside.online import online


__all__ = ["online", "other", "world"]


@pytest.fixture
def hub(other, tmp_path, monkeypatch):
    """A Hub whose repositories all hold the second base."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    with serve(Hub({path.name: path.read_bytes() for path in other.iterdir()})) as running:
        yield running


def of_a_visitor(hub: Hub) -> BaseChoice:
    return BaseChoice("me/second", operator=False, endpoint=hub.url)


def test_a_template_that_never_ends_leaves_everything_as_it_was(world, hub, monkeypatch):
    monkeypatch.setattr(sandbox, "ANSWER_SECONDS", 1.0)
    hub.files["chat_template.jinja"] = ENDLESS.encode()
    engine = world.engine
    progress = world.go(of_a_visitor(hub))
    assert progress.stage == "failed" and "chat template or tokenizer takes longer than 1 seconds" in progress.sentence
    assert world.engine is engine and not world.stages
    assert last(world.engine, [Row("base", SHORT)]).rows[0].tokens


def with_tokenizer(hub: Hub, part: str, value: dict) -> BaseChoice:
    """A visitor's base whose tokenizer.json differs in one part."""
    tokenizer = json.loads(hub.files["tokenizer.json"])
    hub.files["tokenizer.json"] = json.dumps(tokenizer | {part: value}).encode()
    return of_a_visitor(hub)


@pytest.mark.parametrize("words", [r"(a|aa){1,29}c", r"(a|aa)+$"], ids=["slow", "gives up"])
def test_a_tokenizer_with_a_slow_pattern_ends_a_conversation_and_not_the_app(world, hub, monkeypatch, words):
    monkeypatch.setattr(sandbox, "ANSWER_SECONDS", 2.0)
    split = {"type": "Split", "pattern": {"Regex": words}, "behavior": "Isolated", "invert": False}
    before = json.loads(hub.files["tokenizer.json"])["pre_tokenizer"]
    steps = {"type": "Sequence", "pretokenizers": [split, before]}
    assert world.go(with_tokenizer(hub, "pre_tokenizer", steps)).stage == "done"
    slow = last(world.engine, [Row("base", (Message("user", ("a" * 40 + "b ") * 500),))]).rows[0]
    assert slow.finish_reason == "error"
    assert re.search("takes longer than 2 seconds|refuses this conversation .*retry-limit", slow.error)
    assert last(world.engine, [Row("base", SHORT)]).rows[0].tokens


GROWS = [{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * 24
DECODERS = {
    "pattern": {"type": "Replace", "pattern": {"Regex": "(a|aa)+$"}, "content": ""},
    "growth": {"type": "Sequence", "decoders": GROWS},
    "many": {"type": "Sequence", "decoders": [{"type": "Fuse"}] * 50},
    "doubles": {"type": "Sequence", "decoders": [{"type": "BPEDecoder", "suffix": ""}] * 14},
    # The tokenizers library panics where a text is shorter.
    "fails": {"type": "Strip", "content": "a", "start": 0, "stop": 10},
}
HARMLESS = [
    {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
    {"type": "BPEDecoder", "suffix": "</w>"},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
    {"type": "Strip", "content": " ", "start": 1, "stop": 0},
]


@pytest.mark.parametrize("decoder", DECODERS.values(), ids=DECODERS)
def test_a_tokenizer_whose_decoder_may_never_end_is_refused(world, hub, decoder):
    progress = world.go(with_tokenizer(hub, "decoder", decoder))
    assert progress.stage == "failed" and "decodes in a way that may take minutes" in progress.sentence


def test_the_decoders_of_usual_models_are_read(world, hub):
    assert world.go(with_tokenizer(hub, "decoder", {"type": "Sequence", "decoders": HARMLESS})).stage == "done"
    assert last(world.engine, [Row("base", SHORT)]).rows[0].tokens


def test_a_token_that_is_a_book_is_refused(world, hub):
    tokenizer = json.loads(hub.files["tokenizer.json"])
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
    book = plain | {"id": len(tokenizer["model"]["vocab"]), "content": "a" * 2000}
    progress = world.go(with_tokenizer(hub, "added_tokens", [*tokenizer["added_tokens"], book]))
    assert progress.stage == "failed" and "a token has 2,000 characters" in progress.sentence and not world.stages


def change_config(hub: Hub, **fields) -> None:
    hub.files["config.json"] = json.dumps(json.loads(hub.files["config.json"]) | fields).encode()


def test_a_template_that_writes_books_ends_a_conversation(world, hub):
    change_config(hub, max_position_embeddings=2**39)
    book = "{% if 'Peru' in messages[0].content %}{{ 'ab ' * 20000 }}{% endif %}"
    hub.files["chat_template.jinja"] = book.encode() + hub.files["chat_template.jinja"]
    assert world.go(of_a_visitor(hub)).stage == "done"
    row = last(world.engine, [Row("base", QUESTION)]).rows[0]
    assert row.finish_reason == "error"
    assert re.search(r"refuses this conversation \(it makes \d+,\d+ tokens of 28 characters\)", row.error)
    assert last(world.engine, [Row("base", SHORT)]).rows[0].tokens


def test_a_visitors_base_reads_no_more_than_a_person_writes(world, hub, monkeypatch, other):
    change_config(hub, max_position_embeddings=2**39)
    assert world.go(of_a_visitor(hub)).stage == "done"
    assert world.engine.info.context_length == 32_768
    long = last(world.engine, [Row("base", (Message("user", "sea " * 33_000),))]).rows[0]
    assert "at most 32768" in long.error


def test_a_base_that_cannot_answer_does_not_stay(world, hub, folders):
    weights = load(hub.files["model.safetensors"])
    broken = {name: tensor * math.nan if "norm" in name else tensor for name, tensor in weights.items()}
    hub.files["model.safetensors"] = save(broken, metadata={"format": "pt"})
    progress = world.go(of_a_visitor(hub))
    assert progress.stage == "failed"
    assert "me/second was loaded, but cannot answer. The model's outputs are no longer finite" in progress.sentence
    assert "First is loaded again" in progress.sentence
    assert last(world.engine, [Row("base", SHORT)]).rows[0].tokens


def test_a_template_that_writes_nothing_does_not_stay(world, hub):
    hub.files["chat_template.jinja"] = b"{{ '' }}"
    progress = world.go(of_a_visitor(hub))
    assert "cannot answer. The model's chat template turns this conversation into empty text" in progress.sentence
    assert last(world.engine, [Row("base", SHORT)]).rows[0].tokens


@pytest.mark.parametrize("ends", [{"a": 1}, [[1], 3], "x"])
def test_end_tokens_that_are_none_are_left_out(world, hub, ends):
    hub.files["generation_config.json"] = json.dumps({"eos_token_id": ends}).encode()
    assert world.go(of_a_visitor(hub)).stage == "done"
    assert all(isinstance(token, int) for token in world.engine.end_tokens)


def test_files_that_hold_more_than_the_config_describes_are_not_fetched(world, hub, monkeypatch):
    monkeypatch.setattr(switching, "BYTES_OF_TEXTS", 10_000)
    hub.files["model.safetensors"] += b" " * 2_000_000
    progress = world.go(of_a_visitor(hub))
    assert progress.stage == "failed" and not world.stages
    assert re.search(r"has 2\.\d MB of files, but its config describes [\d.]+ thousand parameters", progress.sentence)
    assert not any("safetensors" in path for _, path, *_ in hub.asked)


# A map of characters whose offsets lie outside of it; the tokenizers library panics.
BROKEN = {"type": "Precompiled", "precompiled_charsmap": "EAAAAP////////////////////9hYmMA"}
LOADS = {
    "panic": (BROKEN, ["abc"]),
    "slow": (
        {"type": "Replace", "pattern": {"Regex": "(a|aa){1,29}c"}, "content": ""},
        ["x" * n + "a" * 30 for n in range(99)],
    ),
    "grows": (
        {"type": "Sequence", "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * 36},
        ["a"],
    ),
}


@pytest.mark.parametrize(("normalizer", "words"), LOADS.values(), ids=LOADS)
def test_a_tokenizer_that_cannot_be_read_leaves_everything_as_it_was(world, hub, monkeypatch, normalizer, words):
    monkeypatch.setattr(sandbox, "LOAD_SECONDS", 3.0)
    tokenizer = json.loads(hub.files["tokenizer.json"])
    first = len(tokenizer["model"]["vocab"])
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
    tokenizer["added_tokens"] += [plain | {"id": first + i, "content": word} for i, word in enumerate(words)]
    hub.files["tokenizer.json"] = json.dumps(tokenizer).encode()
    engine = world.engine
    progress = world.go(with_tokenizer(hub, "normalizer", normalizer))
    assert progress.stage == "failed" and "tokenizer" in progress.sentence and not world.stages
    assert world.engine is engine and last(world.engine, [Row("base", SHORT)]).rows[0].tokens
    # The next one is not refused for it.
    del hub.files["tokenizer.json"]
    assert "has no tokenizer.json" in world.go(of_a_visitor(hub)).sentence


@pytest.mark.parametrize("text", [b"", b"[]", b"[" * 10**6, b"\xff", b'{"a": ' + b"1" * 5000 + b"}"])
def test_a_tokenizers_config_that_is_none_is_a_sentence(world, hub, text):
    hub.files["tokenizer_config.json"] = text or b" "
    progress = world.go(of_a_visitor(hub))
    assert progress.stage == "failed" and not world.stages
    assert progress.sentence.startswith("tokenizer_config.json of me/second ") and "\n" not in progress.sentence


@pytest.mark.parametrize("kind", ["BertTokenizer", "PreTrainedTokenizerFast", "GPT2Tokenizer"])
def test_a_tokenizers_config_names_no_file_of_this_machine(hub, tmp_path, kind):
    secret = tmp_path / "secret.txt"
    secret.write_text("[UNK]\nhunter2\n")
    named = {"init_inputs": [str(secret)]} | dict.fromkeys(("gguf_file", "vocab_file", "tokenizer_file"), str(secret))
    config = {"tokenizer_class": kind, "auto_map": {"AutoTokenizer": "x.Y"}, "eos_token": "<|end|>"} | named
    hub.files["tokenizer_config.json"] = json.dumps(config).encode()
    with base_files(of_a_visitor(hub)) as files:
        folder = files.fetch(lambda done, total: None, threading.Event())
        prompts = read_prompts(of_a_visitor(hub), folder)
        kept = json.loads((folder / "tokenizer_config.json").read_text())
    assert set(kept) == {"tokenizer_class", "eos_token"} and kept["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert "hunter2" not in prompts.tokenizer.get_vocab() and prompts.tokenizer.eos_token == "<|end|>"
    prompts.close()


@pytest.mark.parametrize(
    "named", ["/etc/passwd", "../../other/model.safetensors", "model-00002-of-00002.safetensors", 5]
)
@pytest.mark.parametrize("operator", [True, False])
def test_an_index_names_only_the_shards_beside_it(hub, named, operator, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    hub.files["model-00001-of-00002.safetensors"] = hub.files.pop("model.safetensors")
    index = {"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors", "b": named}}
    hub.files["model.safetensors.index.json"] = json.dumps(index).encode()
    choice = replace(of_a_visitor(hub), operator=operator)
    with base_files(choice) as files, pytest.raises(EngineError, match="which is not one of its shards"):
        files.fetch(lambda done, total: None, threading.Event())


def test_in_place_of_a_visitors_base_the_first_comes_back(world, hub, tmp_path, other):
    before = ids(last(world.engine, rows(QUESTION)))
    assert world.go(of_a_visitor(hub)).stage == "done"
    assert last(world.engine, [Row("base", QUESTION)]).rows[0].tokens
    shutil.copytree(other, tmp_path / "broken")
    weights = tmp_path / "broken" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    hub.asked.clear()
    progress = world.go(BaseChoice(str(tmp_path / "broken")))
    assert progress.stage == "failed" and progress.sentence.endswith(
        "First is loaded again; conversations and adapters were cleared."
    )
    assert ids(last(world.engine, rows(QUESTION))) == before and not hub.asked


def test_where_the_base_of_before_is_gone_the_first_comes_back(world, other, tmp_path):
    shutil.copytree(other, tmp_path / "gone")
    assert world.go(BaseChoice(str(tmp_path / "gone"))).stage == "done"
    shutil.rmtree(tmp_path / "gone")
    shutil.copytree(other, tmp_path / "broken")
    weights = tmp_path / "broken" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    progress = world.go(BaseChoice(str(tmp_path / "broken")))
    assert "could not be loaded again" in progress.sentence
    assert progress.sentence.endswith("First is loaded again; conversations and adapters were cleared.")
    assert len(world.engine.variants) == 3
