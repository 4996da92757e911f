# SPDX-License-Identifier: Apache-2.0
"""The output is tried before anything is loaded, and what cannot be written there is kept elsewhere."""

from __future__ import annotations

import json
import os
import resource
import shutil
import tempfile
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, TrainerCallback
from typer.testing import CliRunner

from slim_core.cli import app
from slim_core.training import TrainingError, train
from slim_core.training.base import load_tokenizer
from slim_core.training.output import check_space, try_output
from slim_core.training.trainer import SlimTrainer
from slim_core.training.usable import check_usable
from tests.training.conftest import settings
from tests.training.test_run import At


Usage = namedtuple("Usage", "total used free")


def deep(folder: Path) -> Path:
    """A folder whose own path is short enough, and those of a checkpoint's files too long."""
    path = folder
    while len(str(path)) < 3820:
        path = path / ("d" * 200)
    return path / ("e" * (4060 - len(str(path)) - 1))


# Root too is stopped by each of these.
IMPOSSIBLE = {
    "a file": (lambda f: f / "file", "--output .*file is a file; name a folder"),
    "under a file": (lambda f: f / "file" / "out", "cannot be written: .*file is a file; name a writable folder"),
    "far under a file": (lambda f: f / "file" / "a" / "b", "cannot be written: .*file is a file; name a writable"),
    "a device": (lambda f: Path("/dev/full"), "--output /dev/full is a file; name a folder"),
    "under a device": (lambda f: Path("/dev/full/out"), "cannot be written: /dev/full is a file"),
    "proc": (lambda f: Path("/proc/slim/out"), "--output /proc/slim/out cannot be written: no such file or directory"),
    "a name too long": (lambda f: f / ("n" * 300), r"--output '.*…' cannot be written: file name too long"),
    "a path too long": (lambda f: f / "/".join(["p" * 200] * 40), "cannot be written: file name too long"),
    "files too long": (deep, "cannot be written: file name too long"),
    "a null byte": (lambda f: f / "a\0b", r"--output '.*a\\x00b' cannot be written: embedded null byte"),
    "no UTF-8": (lambda f: f / "a\udcff", r"--output '.*a\\udcff' cannot be written: its name is not UTF-8"),
    "a loop": (lambda f: f / "loop" / "out", "cannot be written: .*loop is a link that leads nowhere"),
    "a link to nowhere": (lambda f: f / "dangling", "cannot be written: .*dangling is a link that leads nowhere"),
    "a line end": (lambda f: f / "file" / "a\nb", r"--output '.*file/a\\nb' cannot be written: .*file is a file"),
}


@pytest.fixture
def place(tmp_path) -> Path:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    return tmp_path


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_an_output_that_cannot_be_is_a_sentence_before_anything_is_loaded(name, place, monkeypatch):
    path, sentence = IMPOSSIBLE[name]
    monkeypatch.setattr("slim_core.training.run.load_tokenizer", None)
    before = sorted(place.rglob("*"))
    with pytest.raises(TrainingError, match=sentence) as caught:
        train(settings(place, place, path(place)))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    assert sorted(place.rglob("*")) == before and (place / "file").read_text() == "mine"


def test_the_command_says_it_in_one_sentence_with_exit_code_1(place):
    arguments = ["--base", "missing", "--data", "missing.jsonl", "--output", place / "file" / "out"]
    result = CliRunner().invoke(app, ["train", *map(str, arguments)])
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: --output") and result.stderr.count("\n") == 1


@pytest.mark.parametrize("methods", [["slim"], ["lora", "slim"]])
def test_trying_an_output_leaves_nothing(methods, tmp_path):
    try_output(settings(tmp_path, tmp_path, tmp_path / "a" / "b" / "out", methods=methods))
    assert not list(tmp_path.iterdir())
    (tmp_path / "out").mkdir()
    try_output(settings(tmp_path, tmp_path, tmp_path / "out", methods=methods))
    assert list(tmp_path.iterdir()) == [tmp_path / "out"] and not list((tmp_path / "out").iterdir())


def test_a_disk_that_is_full_when_it_is_tried_is_a_sentence(tmp_path, monkeypatch):
    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(TrainingError, match="cannot be written: no space left on device; name a writable folder"):
        try_output(settings(tmp_path, tmp_path, tmp_path / "out"))
    assert not list(tmp_path.iterdir())


# -- space -------------------------------------------------------------------------------------------------------


def test_too_little_space_is_a_sentence_before_the_data_are_read(base, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9 - 100_000, 100_000))
    with pytest.raises(TrainingError, match=r"not enough space in .*out: 100\.0 kB are free, and the run needs about"):
        train(settings(base, tmp_path / "no-data.jsonl", tmp_path / "out"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("method", ["lora", "dora", "slim"])
def test_the_estimate_is_what_the_run_takes(method, base, pairs, tmp_path, monkeypatch):
    asked = settings(base, pairs, tmp_path / "out", methods=[method], r=16, max_steps=2, save_every=1)
    most = []

    class Measure(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            files = (path for path in Path(args.output_dir).rglob("*") if path.suffix in (".safetensors", ".pt"))
            most.append(sum(path.stat().st_size for path in files))

    train(asked, callbacks=[Measure()])
    # Its callback is asked before the last checkpoint is deleted.
    took = max(most) + (tmp_path / "out" / "adapter_model.safetensors").stat().st_size
    sizes = check_usable(asked, [method], load_tokenizer(asked)[1], None)
    for free, enough in ((0.9 * took, False), (1.5 * took, True)):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: Usage(10**9, 0, int(free)))
        if enough:
            check_space(asked, sizes)
        else:
            with pytest.raises(TrainingError, match="not enough space"):
                check_space(asked, sizes)


def test_a_file_system_that_tells_no_space_is_tried(base, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, 0))
    asked = settings(base, tmp_path, tmp_path / "out")
    check_space(asked, [10**6])
    # A resumed run with nothing left to do needs none.
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9, 0))
    check_space(asked, [])


# -- while it is saved -------------------------------------------------------------------------------------------


class Limit(TrainerCallback):
    """From a step on, no file may be larger than so many bytes; root too is stopped by that."""

    def __init__(self, step: int, size: int) -> None:
        self.step, self.size = step, size

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step + 1 == self.step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, resource.RLIM_INFINITY))


@pytest.fixture
def limits(tmp_path, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield tmp_path / "tmp"
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def opens(base: Path, folder: Path) -> dict:
    """The record of an adapter that is whole."""
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
    return json.loads((folder / "training.json").read_text())


def test_a_checkpoint_that_does_not_fit_ends_the_run_and_the_smaller_adapter_is_kept(base, pairs, tmp_path, limits):
    asked = settings(base, pairs, tmp_path / "out", save_every=2)
    with pytest.raises(TrainingError) as caught:
        train(asked, callbacks=[Limit(3, 80_000)])
    out = tmp_path / "out"
    sentence = str(caught.value)
    assert sentence.startswith(f"The checkpoint {out}/checkpoints/checkpoint-4 cannot be written: ")
    assert sentence.endswith(
        f"; the adapter as of step 4 is in {out}; fix that and pass --resume to continue from checkpoint-2."
    )
    record = opens(base, out)
    assert (record["status"], record["steps"]) == ("interrupted", 4)
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["checkpoint-2"]
    assert not list(limits.iterdir()) and not (out / ".adapter.new").exists()
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    outcome = train(settings(base, pairs, out, save_every=2, resume=True))
    assert outcome.records[0].status == "finished" and not (out / "checkpoints").exists()


def test_where_nothing_fits_the_last_checkpoint_is_kept_and_named(base, pairs, tmp_path, limits):
    with pytest.raises(
        TrainingError, match="could not be saved anywhere; fix that and pass --resume to continue from check"
    ):
        train(settings(base, pairs, tmp_path / "out", save_every=2), callbacks=[Limit(3, 30_000)])
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == ["checkpoints", "training.json"]
    assert not list(limits.iterdir())
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    train(settings(base, pairs, out, save_every=2, resume=True))
    assert opens(base, out)["status"] == "finished"


class Spoil(TrainerCallback):
    """Does something to the output folder at the end of training."""

    def __init__(self, what) -> None:
        self.what = what

    def on_train_end(self, args, state, control, **kwargs):
        self.what(Path(args.output_dir).parent)


def a_file_instead(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("mine")


def a_folder_in_the_way(folder: Path) -> None:
    (folder / "adapter_model.safetensors").mkdir()


@pytest.mark.parametrize("what", [a_file_instead, a_folder_in_the_way])
def test_an_adapter_that_cannot_be_written_where_it_should_is_kept_elsewhere(what, base, pairs, tmp_path, limits):
    with pytest.raises(TrainingError) as caught:
        train(settings(base, pairs, tmp_path / "out"), callbacks=[Spoil(what)])
    (kept,) = limits.iterdir()
    assert str(caught.value).startswith(f"The slim adapter in {tmp_path}/out cannot be written: ")
    assert f"; the adapter is in {kept}" in str(caught.value) and "\n" not in str(caught.value)
    assert opens(base, kept)["status"] == "finished"
    if what is a_folder_in_the_way:
        names = {path.name for path in (tmp_path / "out").iterdir()}
        assert names <= {"training.json", "adapter_model.safetensors", "checkpoints"}


def test_an_interrupted_adapter_is_written_over_whole_or_not_at_all(base, pairs, tmp_path, limits):
    out = tmp_path / "out"
    asked = settings(base, pairs, out, save_every=1)
    train(asked, callbacks=[At(3, KeyboardInterrupt)])
    before = (out / "adapter_model.safetensors").read_bytes()
    with pytest.raises(TrainingError, match="could not be saved anywhere"):
        train(settings(base, pairs, out, resume=True, save_every=200), callbacks=[Limit(6, 30_000)])
    assert (out / "adapter_model.safetensors").read_bytes() == before
    assert os.listdir(limits) == []


def test_a_run_whose_folder_cannot_be_made_after_all_is_a_sentence(base, pairs, tmp_path, monkeypatch):
    monkeypatch.setattr("slim_core.training.run.try_output", lambda asked: (tmp_path / "out").write_text("mine"))
    with pytest.raises(TrainingError, match=r"out can no longer be written: file exists\.|not a directory"):
        train(settings(base, pairs, tmp_path / "out"))
    assert (tmp_path / "out").read_text() == "mine"


def test_a_run_that_fails_before_its_first_step_leaves_no_folders(base, pairs, tmp_path, monkeypatch):
    def used_up(self) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(SlimTrainer, "evaluate_untrained", used_up)
    for out in (tmp_path / "new" / "out", tmp_path / "empty"):
        with pytest.raises(TrainingError, match="ran out of memory"):
            train(settings(base, pairs, out))
        assert not list(out.parent.glob("new")) and not list(out.glob("*"))
        (tmp_path / "empty").mkdir(exist_ok=True)
    assert (tmp_path / "empty").is_dir()
