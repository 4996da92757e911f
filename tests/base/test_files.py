# SPDX-License-Identifier: Apache-2.0
"""A base model from the Hub: named files of one commit, no token for a visitor's id, one sentence for what fails."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import huggingface_hub
import pytest

from slim_core.base import hub as hub_files
from slim_core.base.choice import BaseChoice
from slim_core.base.files import base_files
from slim_core.inference import EngineError, load_engine
from tests.outside.hub_server import COMMIT, Hub, serve
from tests.outside.online import TOKEN, online, use_hub


__all__ = ["online"]
FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
WEIGHTS = "model.safetensors"
VISITOR = BaseChoice("me/base", operator=False)
OPERATOR = BaseChoice("me/base")


@pytest.fixture(autouse=True)
def private(monkeypatch, tmp_path):
    """Private copies go where the test's files are."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)


@pytest.fixture
def hub(folders):
    files = {name: (folders.base / name).read_bytes() for name in (*FILES, WEIGHTS)}
    more = {"evil.py": b"import os", "pytorch_model.bin": b"pickle", "tf_model.h5": b"1", "README.md": b"hello"}
    with serve(Hub(files | more)) as running:
        yield running


def fetch(hub: Hub, choice: BaseChoice, tell=lambda done, total: None, stop=None):
    """Everything, as (name, bytes)."""
    with base_files(replace(choice, endpoint=hub.url)) as files:
        files.config()
        folder = files.fetch(tell, stop or threading.Event())
        return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def asked_files(hub: Hub) -> set[str]:
    paths = hub.requests("GET") + hub.requests("HEAD")
    return {path.rpartition("/")[2] for path in paths if not path.startswith("/api/")}


@pytest.mark.parametrize("way", ["", "store", "resolve cache"])
@pytest.mark.parametrize("choice", [VISITOR, OPERATOR], ids=["visitor", "operator"])
def test_a_base_arrives_with_what_is_needed_and_nothing_else(choice, way, hub, tmp_path):
    hub.way = way
    reported = []
    fetched = fetch(hub, choice, lambda *n: reported.append(n))
    assert fetched == {name: hub.files[name] for name in (*FILES, WEIGHTS)}
    assert asked_files(hub) == {*FILES, WEIGHTS}
    total = sum(len(data) for data in fetched.values())
    assert reported == sorted(reported) and reported[-1] == (total, total)
    tokens = {headers.get("authorization") for _, path, headers in hub.asked if "/cdn/" not in path}
    assert tokens == ({f"Bearer {TOKEN}"} if choice.operator else {None})
    # What came for a visitor is gone again.
    assert not list(tmp_path.glob("slim-base-*"))


def test_the_config_alone_is_enough_for_an_estimate(hub):
    with base_files(replace(VISITOR, endpoint=hub.url)) as files:
        assert files.config().model_type == "llama"
        assert files.size == sum(len(hub.files[name]) for name in (*FILES, WEIGHTS))
    assert asked_files(hub) == {"config.json"}


def test_weights_in_several_files(hub):
    data = hub.files.pop(WEIGHTS)
    shards = {f"model-0000{i}-of-00002.safetensors": data for i in (1, 2)}
    index = json.dumps({"weight_map": {f"part{i}": name for i, name in enumerate(shards)}}).encode()
    hub.files |= shards | {"model.safetensors.index.json": index, "consolidated.safetensors": data}
    assert set(fetch(hub, VISITOR)) == {*FILES, *shards, "model.safetensors.index.json"}


def test_an_engine_from_the_hub(hub, monkeypatch, folders):
    use_hub(hub.url, monkeypatch)
    engine = load_engine("me/base", lora=folders.lora, revision=COMMIT, device="cpu")
    assert engine.info.name == "me/base" and [v.name for v in engine.variants] == ["base", "lora"]
    # Without a connection, what is here is enough.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    hub.asked.clear()
    assert load_engine("me/base", revision=COMMIT, device="cpu").info.name == "me/base"
    assert not hub.asked
    with pytest.raises(EngineError, match="HF_HUB_OFFLINE is set"):
        load_engine("me/other", device="cpu")


def test_a_download_that_is_cut_off_goes_on_where_it_was(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1024)
    hub.way = "cut"
    assert fetch(hub, VISITOR)[WEIGHTS] == hub.files[WEIGHTS]
    half = len(hub.files[WEIGHTS]) // 2 // 1024 * 1024
    assert [h["range"] for m, _, h in hub.asked if m == "GET" and "range" in h] == [f"bytes={half}-"]


BAD = {
    "missing": "me/base does not exist on the Hub or is private",
    "private": "me/base does not exist on the Hub or is private",
    "no revision": "me/base has no revision",
    "gated": "me/base is gated",
    "broken": "The Hub refused me/base with status 500",
    "busy": "The Hub refused me/base with status 429",
    "no commit": "The Hub reports no commit of me/base",
    "other commit": "The Hub returned another commit of me/base",
    "file redirected": "The Hub redirects me/base to another repository",
    "huge": r"`model\.safetensors` has 1,000,000\.0 MB; at most",
    "damaged": r"`[a-z_]+\.[a-z]+` of me/base was damaged during the download; try again",
    "more": "me/base has a different size than the Hub announced|The Hub sends more than the",
    "wrong size": "A file of me/base has a different size than the Hub announced",
    "cut for good": "The connection to the Hub broke while fetching me/base",
    "trickle": "Fetching me/base takes longer than the 0 minutes allowed",
    "silent": r"The connection to the Hub broke while fetching me/base \(ReadTimeout\)",
}


@pytest.mark.parametrize(("way", "words"), BAD.items(), ids=BAD)
def test_what_goes_wrong_is_one_sentence(way, words, hub, monkeypatch, tmp_path):
    hub.way = way
    if way == "trickle":
        monkeypatch.setattr(hub_files, "VISITOR_SECONDS", 1.0)
    if way == "silent":
        monkeypatch.setattr(hub_files, "ANSWER_SECONDS", 0.3)
    with pytest.raises(EngineError, match=words) as error:
        fetch(hub, VISITOR)
    assert "\n" not in str(error.value) and str(error.value).endswith(".")


def test_damaged_weights_do_not_stay_in_the_cache(hub):
    hub.way = "damaged"
    with pytest.raises(EngineError, match="of me/base was damaged during the download"):
        fetch(hub, OPERATOR)
    hub.way = ""
    assert fetch(hub, OPERATOR)[WEIGHTS] == hub.files[WEIGHTS]


@pytest.mark.parametrize(
    "name", ["base", "../x/y", "/etc/passwd", "assets/../x", "a/b/c", "me/base\n", "~/x", "", "-"]
)
def test_a_visitor_names_a_hub_id_and_no_folder(name, hub):
    with pytest.raises(EngineError, match="is not a Hub id"):
        fetch(hub, replace(VISITOR, base=name))
    assert not hub.asked


def test_a_visitors_id_is_no_folder_even_where_there_is_one_of_that_name(hub, tmp_path, monkeypatch):
    (tmp_path / "me" / "base").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert fetch(hub, VISITOR)[WEIGHTS] == hub.files[WEIGHTS]


def test_repositories_that_are_no_base_are_sentences(hub):
    for name, words in (
        ("config.json", r"has no config\.json"),
        (WEIGHTS, r"has no model\.safetensors; other weight files"),
    ):
        data = hub.files.pop(name)
        with pytest.raises(EngineError, match=words):
            fetch(hub, VISITOR)
        hub.files[name] = data
    with pytest.raises(EngineError, match="There is no folder /nothing/here"):
        fetch(hub, BaseChoice("/nothing/here"))


def test_a_renamed_repository_is_not_followed_for_a_visitor(hub):
    hub.way = "renamed"
    with pytest.raises(EngineError, match="old/name was renamed to 'new/name'"):
        fetch(hub, replace(VISITOR, base="old/name"))


def test_a_full_disk_is_told_before_the_first_byte(hub, monkeypatch):
    monkeypatch.setattr(hub_files.shutil, "disk_usage", lambda path: SimpleNamespace(free=hub_files.DISK_LEFT + 1000))
    with pytest.raises(
        EngineError, match=r"me/base has .* of files, but this machine's disk has free space for only 1\.0 kB"
    ):
        fetch(hub, VISITOR)
    assert asked_files(hub) == {"config.json"}


def test_a_download_can_be_stopped(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1024)
    stop = threading.Event()
    with pytest.raises(EngineError, match="Fetching me/base was stopped"):
        fetch(hub, VISITOR, lambda done, total: stop.set(), stop)


def test_the_config_of_a_base_can_be_stopped_too(hub):
    stop = threading.Event()
    with base_files(replace(VISITOR, endpoint=hub.url)) as files:
        stop.set()
        with pytest.raises(EngineError, match="Fetching me/base was stopped"):
            files.config(stop)


def test_a_stopped_download_that_still_writes_leaves_nothing(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 8)
    downloads = ThreadPoolExecutor()
    monkeypatch.setitem(hub_files.DOWNLOADS, False, downloads)
    hub.way, stop = "trickle", threading.Event()
    threading.Timer(0.5, stop.set).start()
    with pytest.raises(EngineError, match="Fetching me/base was stopped"):
        fetch(hub, VISITOR, stop=stop)
    downloads.shutdown()
    assert not list(tmp_path.glob("slim-base-*"))
