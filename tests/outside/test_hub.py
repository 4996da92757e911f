# SPDX-License-Identifier: Apache-2.0
"""Adapters from the Hub: two files of one commit, no token for a visitor's id, one sentence for what goes wrong."""

from __future__ import annotations

import errno
import re
import sys
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub.utils._xet_progress_reporting import XetDownloadProgressReporter

from slim_core.adapters import HubRepository, Limits, check, describe_base, open_adapter
from slim_core.outside import hub as hub_module
from slim_core.outside.files import CONFIG, WEIGHTS
from slim_core.outside.hub import progress_bar
from tests.adapters.small import IDS
from tests.conftest import build
from tests.method.small import assert_untouched, logits
from tests.outside.hub_server import COMMIT, Hub, serve
from tests.outside.online import TOKEN, online
from tests.waiting import until


__all__ = ["online"]


@pytest.fixture
def hub(good_lora):
    with serve(Hub({name: (good_lora / name).read_bytes() for name in (CONFIG, WEIGHTS)})) as running:
        running.files["evil.py"] = b"import os"
        yield running


@pytest.fixture(scope="module")
def base():
    return build("llama")


def repository(hub: Hub, name: str = "me/lora", **kwargs) -> HubRepository:
    return HubRepository(name, endpoint=hub.url, **kwargs)


# "store": large files lie on another host. "resolve cache": small ones behind a second address of the same host.
# "xet": large ones may also come in pieces from another service, whose downloads cannot be stopped.
@pytest.mark.parametrize("way", ["", "store", "resolve cache", "xet"])
@pytest.mark.parametrize("revision", [None, "main", "refs/pr/1", COMMIT])
def test_a_visitors_adapter_arrives_without_any_token(way, revision, hub, base, good_lora):
    hub.way = way
    reported = []
    source = repository(hub, revision=revision, on_progress=lambda done, total: reported.append((done, total)))
    adapter = open_adapter(source, describe_base(base))
    assert (adapter.folder / WEIGHTS).read_bytes() == (good_lora / WEIGHTS).read_bytes()
    assert [path.name for path in adapter.folder.iterdir()] == [WEIGHTS] and adapter.label == "lora"
    total = sum(len(hub.files[name]) for name in (CONFIG, WEIGHTS))
    assert reported[-1] == (total, total) and reported == sorted(reported)
    assert not any("authorization" in headers for _, _, headers in hub.asked)
    files = [path for path in hub.requests("GET") + hub.requests("HEAD") if not path.startswith("/api/models/")]
    assert {path.rpartition("/")[2] for path in files} == {CONFIG, WEIGHTS}
    assert all(COMMIT in path for path in files if "/cdn/" not in path)
    # Sizes first: nothing is fetched before both are known.
    methods = [method for method, path, _ in hub.asked if "/api/models/" not in path]
    assert methods.index("GET") >= 2


def test_the_librarys_switch_for_xet_is_as_it_was(hub, base, monkeypatch):
    during = []
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", False)
    note = lambda done, total: during.append(huggingface_hub.constants.HF_HUB_DISABLE_XET)  # noqa: E731
    open_adapter(repository(hub, on_progress=note), describe_base(base))
    assert during and all(during) and huggingface_hub.constants.HF_HUB_DISABLE_XET is False
    with hub_module.over_http():
        with hub_module.over_http():
            pass
        assert huggingface_hub.constants.HF_HUB_DISABLE_XET is True
    assert huggingface_hub.constants.HF_HUB_DISABLE_XET is False


def test_what_xet_sends_is_counted_once():
    """Driven by the library's own reporter: what comes over the network is then written, and counts then."""
    reported = []
    bar = progress_bar(1_010, lambda done, total: reported.append((done, total)), threading.Event())
    bar(total=10).update(10)  # the config came before
    with XetDownloadProgressReporter(
        reconstruction_desc="a", total=1_000, log_level=30, name="x", tqdm_class=bar
    ) as reporter:
        for written, received in ((0, 300), (300, 600), (600, 1_000), (1_000, 1_000)):
            report = SimpleNamespace(
                total_bytes_completed=written,
                total_transfer_bytes_completed=received,
                total_bytes_completion_rate=1.0,
                total_transfer_bytes_completion_rate=1.0,
                total_bytes=1_000,
            )
            reporter.update_progress(report)
    assert reported == [(10, 1_010), (310, 1_010), (610, 1_010), (1_010, 1_010)]


def test_the_operators_token_goes_with_the_operators_ids(hub, base):
    open_adapter(repository(hub, operator=True), describe_base(base))
    assert all(headers.get("authorization") == f"Bearer {TOKEN}" for _, _, headers in hub.asked)


def test_a_download_that_is_cut_off_goes_on_where_it_was(hub, base, good_lora, monkeypatch):
    # The library goes on after the last whole piece that it has; its pieces are larger than this file.
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 64)
    hub.way = "cut"
    adapter = open_adapter(repository(hub), describe_base(base))
    assert (adapter.folder / WEIGHTS).read_bytes() == (good_lora / WEIGHTS).read_bytes()
    half = len(hub.files[WEIGHTS]) // 2 // 64 * 64
    assert [h["range"] for m, _, h in hub.asked if m == "GET" and "range" in h] == [f"bytes={half}-"]


BAD = {
    "missing": "me/lora does not exist on the Hub or is private",
    "private": "me/lora does not exist on the Hub or is private",
    "no revision": r"me/lora has no revision None; give a branch",
    "gated": "me/lora is gated: its owner must grant access to the account whose token is used here; what",
    "broken": "The Hub refused me/lora with status 500",
    "busy": "The Hub refused me/lora with status 429",
    "no commit": "The Hub reports no commit of me/lora",
    "other commit": "The Hub returned another commit of me/lora",
    "file redirected": "The Hub redirects me/lora to another repository",
    "huge": r"`adapter_model\.safetensors` has 1,000,000\.0 MB; at most",
    "zero": "`adapter_model.safetensors` of me/lora is empty",
    "no size": "The Hub does not say how large `adapter_model.safetensors` of me/lora is",
    "wrong size": "A file of me/lora has a different size than the Hub announced",
    "more": "The Hub sends more than the 5,[0-9]+ bytes that it announced",
    "damaged": "`adapter_model.safetensors` of me/lora was damaged during the download",
    "cut for good": "The connection to the Hub broke while fetching me/lora",
    "trickle": "Fetching me/lora takes longer than the 1 seconds allowed",
    "silent": r"The connection to the Hub broke while fetching me/lora \(ReadTimeout\)",
}


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize(("way", "words"), BAD.items(), ids=BAD)
def test_what_goes_wrong_is_one_sentence(way, words, hub, base, monkeypatch):
    hub.way = way
    # Short waits only where waiting is what goes wrong: a busy machine is slow too.
    if way == "silent":
        monkeypatch.setattr(hub_module, "ANSWER_SECONDS", 0.3)
    limits = Limits(seconds=1 if way == "trickle" else 60)
    before = logits(base, IDS)
    (result,) = check(repository(hub), describe_base(base), limits=limits)
    assert result.state == "failed" and re.search(words, result.sentence), result.sentence
    assert "\n" not in result.sentence and result.sentence.endswith((".", "again."))
    assert result.name == ("size" if way == "huge" else "readable")
    assert_untouched(base, before, IDS)
    if way == "huge":
        assert not [path for path in hub.requests("GET") if path.endswith("safetensors")]


def test_a_renamed_repository_is_named_and_not_followed(hub, base):
    hub.way = "renamed"
    (result,) = check(repository(hub, "old/name"), describe_base(base))
    assert "returned another repository, 'new/name': old/name was renamed" in result.sentence
    assert not [path for path in hub.requests("GET") if path.endswith(("json", "safetensors"))]


MODEL, PICTURES = (
    "this is a whole model, not an adapter: choose it as the base",
    r"this is a LoRA for images .*: use",
)
# What a repository has: what the sentence says is missing, and how it goes on.
INSTEAD = {
    "nothing of use": (
        [".gitattributes", "README.md"],
        CONFIG,
        "; an adapter consists of .*, as PEFT's `save_pretrained` writes",
    ),
    "no config": (
        [WEIGHTS, "README.md"],
        CONFIG,
        "; without it there is no way to know .*: use the config that PEFT saved next",
    ),
    "MLX": (
        [CONFIG, "adapters.safetensors"],
        WEIGHTS,
        "; judging by 'adapters.safetensors', this is an MLX adapter.*: trans",
    ),
    "MLX, its config lost": (
        ["adapters.safetensors"],
        CONFIG,
        "; judging by 'adapters.safetensors', this is an MLX adapter",
    ),
    "an old MLX": ([CONFIG, "adapters.npz"], WEIGHTS, "; judging by 'adapters.npz', this is an MLX adapter"),
    "GGUF": (
        ["README.md", "Qwen-LoRA-F16.GGUF"],
        CONFIG,
        "; judging by 'qwen-lora-f16.gguf', this is GGUF.*: use the adapter",
    ),
    "GGUF in a folder": (["gguf/lora.gguf"], CONFIG, "; judging by 'gguf/lora.gguf', this is GGUF"),
    "Diffusers": (
        ["pytorch_lora_weights.safetensors"],
        CONFIG,
        f"; judging by 'pytorch_lora_weights.safetensors', {PICTURES}",
    ),
    "a pipeline": (["model_index.json", "unet/config.json"], CONFIG, f"; judging by 'model_index.json', {PICTURES}"),
    "Kohya": (["my_style-10.safetensors"], CONFIG, f"; judging by 'my_style-10.safetensors' alone, {PICTURES}"),
    "a pickle": (
        [CONFIG, "adapter_model.bin"],
        WEIGHTS,
        " but 'adapter_model.bin', a format that can run code, .*: pyth",
    ),
    "a pickle alone": (
        ["lora.pt"],
        CONFIG,
        " but 'lora.pt', a format that can run code, so it is never opened; convert",
    ),
    "a Trainer's state": (["training_args.bin", "rng_state_0.pth"], CONFIG, "; an adapter consists of .*, as PEFT's"),
    "a pickle beside it": (
        [CONFIG, "training_args.bin", "lora.bin"],
        WEIGHTS,
        " but 'lora.bin', a format that can run",
    ),
    "a whole model": (["config.json", "model.safetensors"], CONFIG, f"; judging by 'model.safetensors', {MODEL}"),
    "a pickled model": (["config.json", "pytorch_model.bin"], CONFIG, f"; judging by 'pytorch_model.bin', {MODEL}"),
    "shards": (
        [CONFIG, "adapter_model-00001-of-00002.safetensors"],
        WEIGHTS,
        "; judging by .*, this is a checkpoint in several",
    ),
    "another name": (
        [CONFIG, "lora.safetensors"],
        WEIGHTS,
        "; if 'lora.safetensors' is the adapter, download both files, rename it",
    ),
    "in a folder": (
        [f"out/last/{CONFIG}", f"out/last/{WEIGHTS}"],
        CONFIG,
        "; there is an adapter in its folder 'out/last'",
    ),
    "its own folder's": (
        [CONFIG, f"a/{CONFIG}", f"a/{WEIGHTS}"],
        WEIGHTS,
        "; there is an adapter in its folder 'a': down",
    ),
}


@pytest.mark.parametrize(("files", "missing", "words"), INSTEAD.values(), ids=INSTEAD)
def test_a_repository_that_is_no_adapter_of_peft_is_named_with_the_way_out(files, missing, words, hub, base):
    hub.files = {name: hub.files.get(name, b"x") for name in files}
    (result,) = check(repository(hub), describe_base(base))
    assert re.match(f"me/lora has no `{missing}`{words}", result.sentence), result.sentence
    assert result.sentence.isprintable() and result.sentence.endswith(".") and result.state == "failed"
    fetched = [path.rpartition("/")[2] for path in hub.requests("GET") if not path.startswith("/api/models/")]
    assert not fetched


def test_a_name_on_the_hub_gets_into_no_line_that_is_copied(hub, base):
    hub.files = {CONFIG: b"{}", "a'; rm -rf x; '.bin": b"x"}
    (result,) = check(repository(hub), describe_base(base))
    line = result.sentence.partition("convert it with: ")[2]
    assert "rm -rf" not in line and "adapter_model.bin" in line


def test_without_a_connection_the_name_may_be_wrong_too(hub, base):
    """A folder whose name is mistyped is looked for on the Hub."""
    (result,) = check(HubRepository("me/lora", endpoint="http://127.0.0.1:9"), describe_base(base))
    assert result.sentence == (
        "The Hub cannot be reached to look for me/lora (ConnectError); check the connection, or the name if a folder "
        "was meant."
    )


def test_a_full_disk_is_said(hub, base, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(hub_module, "hf_hub_download", full)
    (result,) = check(repository(hub), describe_base(base))
    assert result.sentence == "This machine has no room left on its disk for me/lora."


def test_offline_is_said(hub, base, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.utils.close_session()
    (result,) = check(repository(hub), describe_base(base))
    assert "HF_HUB_OFFLINE is set" in result.sentence and not hub.asked
    assert result.sentence.endswith("use local files or a local folder.")


IDS_THAT_ARE_NONE = [
    "",
    "lora",
    "a/../b",
    "../b",
    "a/..",
    "./a",
    "a/b/c",
    "http://evil.com/x",
    "a/" + "b" * 300,
    "a b/c",
    "a/b?x=1",
    "a/b#x",
    "a%2f/b",
    "a/b\n",
    "a/.git",
    "a\\b",
    "ä/b",
    "a/b--c",
    "a/b\0",
    "@evil/b",
]


@pytest.mark.parametrize("name", IDS_THAT_ARE_NONE)
def test_what_is_no_id_is_not_asked_for(name, hub, base):
    (result,) = check(repository(hub, name), describe_base(base))
    assert result.sentence.endswith("dots, dashes and underscores.") and "is not a Hub id" in result.sentence
    assert result.sentence.isprintable() and len(result.sentence) < 250 and not hub.asked


@pytest.mark.parametrize("revision", ["", "../x", "a//b", "-x", "a b", "x" * 300, "a?b", "\n"])
def test_what_is_no_revision_is_not_asked_for(revision, hub, base):
    (result,) = check(repository(hub, revision=revision), describe_base(base))
    assert "is not a revision; it must be a branch, a tag or a commit" in result.sentence and not hub.asked


def test_a_bad_adapter_from_the_hub_is_refused_like_any_other(hub, base):
    hub.files[CONFIG] = hub.files[CONFIG].replace(b'"r": 4', b'"r": 0')
    *_, result = check(repository(hub), describe_base(base))
    assert (result.name, result.state) == ("format", "failed") and "`r` is 0" in result.sentence


def test_a_download_that_nobody_waits_for_ends(hub, base, monkeypatch):
    hub.way = "trickle"
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 4)
    (result,) = check(repository(hub), describe_base(base), limits=Limits(seconds=1))
    assert "takes longer" in result.sentence
    until(lambda: not hub_module.DOWNLOADS._work_queue.qsize() and not _busy())


def test_waiting_for_others_takes_none_of_its_time(hub, base, monkeypatch):
    downloads = ThreadPoolExecutor(1)
    monkeypatch.setattr(hub_module, "DOWNLOADS", downloads)
    downloads.submit(threading.Event().wait, 1.5)
    assert all(
        result.state == "passed" for result in check(repository(hub), describe_base(base), limits=Limits(seconds=1))
    )
    downloads.shutdown()


def test_waiting_for_others_has_an_end(hub, base, monkeypatch):
    downloads, end = ThreadPoolExecutor(1), threading.Event()
    monkeypatch.setattr(hub_module, "DOWNLOADS", downloads)
    monkeypatch.setattr(hub_module, "WAITING_SECONDS", 0.5)
    downloads.submit(end.wait, 60)
    (result,) = check(repository(hub), describe_base(base))
    end.set()
    assert result.sentence == "Too many downloads are running, so me/lora has to wait; try again later."
    downloads.shutdown()


def _busy() -> bool:
    frames = sys._current_frames().values()
    return any("_fetch" in [f.name for f in traceback.extract_stack(frame)] for frame in frames)


def test_ids_with_dots_and_dashes_are_fine(hub, base):
    for name in ("me/lora", "A-b_c.d/E.f-g_h1", "m/l"):
        assert open_adapter(repository(hub, name), describe_base(base)).tensors().keys()
