# SPDX-License-Identifier: Apache-2.0
"""What a run goes on from: checkpoints that are whole, a record that can be read, and nothing is written over."""

from __future__ import annotations

import io
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from slim_core.cli import app
from slim_core.training import TrainingError, TrainSettings, train
from slim_core.training.checkpoints import Checkpoints, KeepNewest, read_checkpoints, set_aside
from slim_core.training.resume import going_on, read_previous_runs
from slim_core.training.whole_files import SUMS
from tests.training.conftest import PAIRS, settings, write_jsonl
from tests.training.damage import (
    Evil,
    a_file,
    cut,
    cut_weights,
    edit,
    fewer_weights,
    flipped,
    linked,
    linked_whole,
    other_weights,
    pickled,
    piped,
    remove,
    snapshot,
    write,
)
from tests.training.test_run import At, Crash, assert_equal, weights


@pytest.fixture(scope="module")
def crashed(base, tmp_path_factory) -> Path:
    """A run that crashed in its sixth step with checkpoints of steps 2 and 4, and beside it one that did not."""
    folder = tmp_path_factory.mktemp("crashed")
    data = write_jsonl(folder / "pairs.jsonl", [{"prompt": q, "completion": a} for q, a in PAIRS])
    train(settings(base, data, folder / "whole"))
    first = folder / "out" / "checkpoints" / "checkpoint-2"
    for step, resume in ((3, False), (5, True)):
        with pytest.raises(Crash):
            train(settings(base, data, folder / "out", save_every=2, resume=resume), callbacks=[At(step, Crash)])
        if step == 3:
            shutil.copytree(first, folder / "kept")
    shutil.copytree(folder / "kept", first)
    return folder


@pytest.fixture
def again(base, crashed, tmp_path) -> TrainSettings:
    """The crashed run in a folder of its own, to be resumed, as versions left it that wrote no sums."""
    shutil.copytree(crashed / "out", tmp_path / "out")
    for sums in (tmp_path / "out" / "checkpoints").glob(f"*/{SUMS}"):
        sums.unlink()
    return settings(base, crashed / "pairs.jsonl", tmp_path / "out", save_every=2, resume=True)


@pytest.fixture
def summed(base, crashed, tmp_path) -> TrainSettings:
    """The same with the sums of all files."""
    shutil.copytree(crashed / "out", tmp_path / "out")
    return settings(base, crashed / "pairs.jsonl", tmp_path / "out", save_every=2, resume=True)


def not_finite(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file(
        tensors | {name: t * float("nan") for name, t in tensors.items() if name.endswith("_A")}, folder / WEIGHTS
    )


STATE, WEIGHTS, CONFIG = "trainer_state.json", "adapter_model.safetensors", "adapter_config.json"
DAMAGES = [
    (remove(STATE), "trainer_state.json is missing"),
    (write(STATE, ""), "trainer_state.json is empty"),
    (cut(STATE), "trainer_state.json is truncated or not JSON"),
    (write(STATE, b"\0" * 500), "trainer_state.json is truncated or not JSON"),
    (write(STATE, b"\xff\xfe"), "trainer_state.json is truncated or not JSON"),
    (write(STATE, "[" * 100_000), "trainer_state.json is truncated or not JSON"),
    (write(STATE, "[]"), "trainer_state.json holds no object"),
    (write(STATE, "{}"), "trainer_state.json has no global_step"),
    (edit(STATE, global_step=...), "trainer_state.json has no global_step"),
    (edit(STATE, global_step=2), "trainer_state.json is of step 2"),
    (edit(STATE, max_steps="6"), "trainer_state.json has no max_steps"),
    (edit(STATE, epoch=None), "trainer_state.json has no epoch"),
    (edit(STATE, log_history=[1]), "trainer_state.json has no log_history"),
    (edit(STATE, stateful_callbacks=[]), "trainer_state.json has no stateful_callbacks"),
    (edit(STATE, unknown=1), "trainer_state.json is not what this version of transformers writes"),
    (remove(WEIGHTS), "adapter_model.safetensors is missing"),
    (write(WEIGHTS, ""), "adapter_model.safetensors is empty"),
    (cut(WEIGHTS), "adapter_model.safetensors is truncated or not a safetensors file"),
    (write(WEIGHTS, b"\0" * 5000), "adapter_model.safetensors is truncated or not a safetensors file"),
    (lambda f: save_file({}, f / WEIGHTS), "adapter_model.safetensors holds no weights"),
    (not_finite, "adapter_model.safetensors holds numbers that are not finite"),
    (remove(CONFIG), "adapter_config.json is missing"),
    (cut(CONFIG), "adapter_config.json is truncated or not JSON"),
    (remove("optimizer.pt"), "optimizer.pt is missing"),
    (write("optimizer.pt", ""), "optimizer.pt is empty"),
    (cut("optimizer.pt"), "optimizer.pt is truncated or cannot be read safely"),
    (write("optimizer.pt", b"\0" * 500), "optimizer.pt is truncated or cannot be read safely"),
    (pickled("optimizer.pt", Evil()), "optimizer.pt is truncated or cannot be read safely"),
    (pickled("optimizer.pt", {"state": {}}), "optimizer.pt has no param_groups"),
    (pickled("optimizer.pt", [1]), "optimizer.pt has no state"),
    (remove("scheduler.pt"), "scheduler.pt is missing"),
    (write("scheduler.pt", ""), "scheduler.pt is empty"),
    (cut("scheduler.pt"), "scheduler.pt is truncated or cannot be read safely"),
    (pickled("scheduler.pt", {}), "scheduler.pt has no last_epoch"),
    (remove("rng_state.pth"), "rng_state.pth is missing"),
    (write("rng_state.pth", ""), "rng_state.pth is empty"),
    (cut("rng_state.pth"), "rng_state.pth is truncated or cannot be read safely"),
    (pickled("rng_state.pth", {"python": 1}), "rng_state.pth has no python"),
    (linked, "optimizer.pt is a link"),
    (linked_whole, "it is a link"),
    (a_file, "it is not a folder"),
    (piped, "scheduler.pt is not a file"),
]


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (flipped(WEIGHTS), "adapter_model.safetensors has changed since it was written"),
        (edit(STATE, log_history=[{"loss": 0.0}]), "trainer_state.json has changed since it was written"),
        (remove("README.md"), "README.md is missing"),
        (write(SUMS, "{"), "sha256.json is truncated or not JSON"),
        (write(SUMS, "[]"), "sha256.json holds no object"),
    ],
)
def test_a_byte_that_changed_is_noticed(damage, why, summed):
    assert {path.name for path in read_checkpoints(summed.output).intact} == {"checkpoint-4", "checkpoint-2"}
    damage(summed.output / "checkpoints" / "checkpoint-4")
    checkpoints = read_checkpoints(summed.output)
    assert [str(each) for each in checkpoints.damaged] == [f"checkpoint-4 is damaged ({why})"]
    assert [path.name for path in checkpoints.intact] == ["checkpoint-2"]


def test_a_checkpoint_has_its_name_only_when_it_is_whole(base, pairs, tmp_path, monkeypatch):
    """However the process ends while it is written."""
    seen = []

    def end(folder: Path) -> None:
        checkpoints = folder.parent.parent
        seen.append(sorted(path.name for path in checkpoints.iterdir()))
        raise KeyboardInterrupt

    monkeypatch.setattr("slim_core.training.saving.write_sums", end)
    train(settings(base, pairs, tmp_path / "out", save_every=2))
    assert seen == [[".checkpoint.new"]]
    assert not read_checkpoints(tmp_path / "out")


@pytest.mark.parametrize("damage,why", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_and_the_sentence_says_why(damage, why, again):
    damage(again.output / "checkpoints" / "checkpoint-4")
    (earlier,) = read_previous_runs(again).values()
    assert going_on("slim", earlier.checkpoints) == (
        f"checkpoint-4 is damaged ({why}); slim continues from checkpoint-2."
    )
    assert not Path("/tmp/slim-evil-ran").exists()


@pytest.mark.parametrize(
    "name", ["checkpoint-abc", "checkpoint-4-copy", "checkpoint-04", "checkpoint-", "the best one"]
)
def test_a_renamed_checkpoint_is_not_started_over(name, again):
    checkpoints = again.output / "checkpoints"
    (checkpoints / "checkpoint-4").rename(checkpoints / name)
    (earlier,) = read_previous_runs(again).values()
    assert going_on("slim", earlier.checkpoints) == "slim continues from checkpoint-2."
    shutil.rmtree(checkpoints / "checkpoint-2")
    before = snapshot(again.output)
    with pytest.raises(
        TrainingError, match=f"has no checkpoint to resume from but {name}, .* rename it to checkpoint-S"
    ):
        train(again)
    assert snapshot(again.output) == before


FULL = [
    (write(STATE, ""), "trainer_state.json is empty"),
    (other_weights, "adapter_model.safetensors has no base_model"),
    (fewer_weights, "adapter_model.safetensors has no base_model"),
    (cut_weights, "in a different shape"),
    (linked_whole, "it is a link"),
]


@pytest.mark.parametrize("damage,why", FULL)
def test_a_run_goes_on_from_the_newest_whole_checkpoint_and_keeps_the_damaged_one(damage, why, again, crashed):
    checkpoints = again.output / "checkpoints"
    damage(checkpoints / "checkpoint-4")
    before = snapshot(checkpoints / "checkpoint-4")
    elsewhere = snapshot(again.output / "elsewhere")
    out = io.StringIO()
    train(again, Console(file=out))
    assert "checkpoint-4 is damaged (" in out.getvalue() and why in out.getvalue()
    assert "); slim continues from checkpoint-2." in out.getvalue()
    assert_equal(weights(again.output), weights(crashed / "whole"))
    assert [path.name for path in checkpoints.iterdir()] == ["damaged-checkpoint-4"]
    assert snapshot(checkpoints / "damaged-checkpoint-4") == before
    assert snapshot(again.output / "elsewhere") == elsewhere


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (write(STATE, ""), r"checkpoint-4 is damaged .*empty"),
        (other_weights, r"checkpoint-2 is damaged \(adapter_model.safetens"),
    ],
    ids=["empty states", "weights of another adapter"],
)
def test_without_a_whole_checkpoint_a_run_refuses_to_begin_anew(damage, why, again):
    for step in (2, 4):
        damage(again.output / "checkpoints" / f"checkpoint-{step}")
    before = snapshot(again.output)
    with pytest.raises(TrainingError, match=rf"has no complete checkpoint to resume from: .*{why}"):
        train(again)
    assert snapshot(again.output) == before


def test_an_optimiser_of_another_adapter_is_a_sentence(again):
    for step in (2, 4):
        state = {"state": {}, "param_groups": [{"lr": 1.0, "params": [0]}]}
        torch.save(state, again.output / "checkpoints" / f"checkpoint-{step}" / "optimizer.pt")
    with pytest.raises(
        TrainingError, match=r"checkpoint-4 in .* can be opened, but the run cannot resume from it: .*; move it"
    ):
        train(again)


RECORD = "training.json"
RECORDS = [
    (remove(RECORD), "There is no run to resume in .*: it has checkpoints, but training.json, .* is missing; restore"),
    (write(RECORD, ""), r"training.json is damaged \(empty\)"),
    (cut(RECORD), r"training.json is damaged \(truncated or not JSON\)"),
    (write(RECORD, b"\xff"), r"training.json is damaged \(truncated or not JSON\)"),
    (write(RECORD, "null"), r"training.json is damaged \(not a record of a run\)"),
    (write(RECORD, "{}"), r"training.json is damaged \(without the field 'method'\)"),
    (edit(RECORD, data=...), r"training.json is damaged \(without the field 'data'\)"),
    (edit(RECORD, arguments=[]), r"training.json is damaged \(wrong in 'arguments'\)"),
    (edit(RECORD, seconds="1"), r"training.json is damaged \(wrong in 'seconds'\)"),
    (edit(RECORD, steps=None), r"training.json is damaged \(wrong in 'steps'\)"),
    (edit(RECORD, status="done"), r"training.json is damaged \(wrong in 'status'\)"),
    (edit(RECORD, curves=[1]), r"training.json is damaged \(wrong in 'curves'\)"),
    (edit(RECORD, strange=1), r"training.json is damaged \(of another version, with a field 'strange'\)"),
    (lambda f: (remove(RECORD)(f), (f / RECORD).mkdir()), r"training.json is damaged \(not a file\)"),
    (lambda f: (remove(RECORD)(f), os.mkfifo(f / RECORD)), r"training.json is damaged \(not a file\)"),
    (edit(RECORD, method="lora"), "The run in .* trained lora, not slim; pass the same --method"),
    (edit(RECORD, status="finished"), "is finished, but its adapter_config.json is missing; restore that file"),
    (
        lambda f: (shutil.rmtree(f / "checkpoints"), write(WEIGHTS, "x")(f)),
        "was interrupted at step 0 and has no checkpoint to resume from; leave --resume out .* is kept",
    ),
    (
        lambda f: (shutil.rmtree(f / "checkpoints"), remove(RECORD)(f), write(WEIGHTS, "x")(f)),
        "There is no run to resume in .*: it has an adapter, but training.json is missing",
    ),
    (lambda f: (shutil.rmtree(f / "checkpoints"), write("checkpoints", "")(f)), "cannot be read: not a directory"),
]


@pytest.mark.parametrize("damage,sentence", RECORDS)
def test_a_run_that_cannot_be_trusted_is_refused_before_anything_is_loaded(damage, sentence, again, monkeypatch):
    monkeypatch.setattr("slim_core.training.run.load_tokenizer", None)
    damage(again.output)
    names = sorted(str(path) for path in again.output.rglob("*"))
    with pytest.raises(TrainingError, match=sentence) as caught:
        train(again)
    assert "\n" not in str(caught.value)
    assert sorted(str(path) for path in again.output.rglob("*")) == names


def test_a_finished_run_with_a_cut_adapter_is_not_called_finished(base, crashed, tmp_path):
    shutil.copytree(crashed / "whole", tmp_path / "out")
    asked = settings(base, crashed / "pairs.jsonl", tmp_path / "out", resume=True)
    assert train(asked).records[0].status == "finished"
    cut(WEIGHTS)(tmp_path / "out")
    with pytest.raises(TrainingError, match=r"is finished, but its adapter_model.safetensors is truncated"):
        train(asked)


def test_the_command_says_it_in_one_sentence(again, base, crashed):
    write(RECORD, "")(again.output)
    arguments = ["--base", base, "--data", crashed / "pairs.jsonl", "--output", again.output, "--resume"]
    result = CliRunner().invoke(app, ["train", *map(str, arguments)])
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1
    assert "training.json is damaged (empty)" in result.stderr


def test_what_is_not_the_runs_own_is_neither_read_nor_deleted(again):
    checkpoints = again.output / "checkpoints"
    for name in ("checkpoint-4-copy", "checkpoint-04", "checkpoint-x", "checkpoint-²", "notes"):
        (checkpoints / name).mkdir()
        (checkpoints / name / "file").write_text(name)
    known = read_checkpoints(again.output)
    assert [path.name for path in known.intact] == ["checkpoint-4", "checkpoint-2"] and not known.damaged
    train(again)
    left = {path.name for path in checkpoints.iterdir()}
    assert left == {"checkpoint-4-copy", "checkpoint-04", "checkpoint-x", "checkpoint-²", "notes"}


def test_a_damaged_checkpoint_is_set_aside_beside_others(again):
    checkpoints = again.output / "checkpoints"
    write(STATE, "")(checkpoints / "checkpoint-4")
    (checkpoints / "damaged-checkpoint-4").mkdir()
    set_aside(read_checkpoints(again.output).damaged)
    names = sorted(path.name for path in checkpoints.iterdir())
    assert names == ["checkpoint-2", "damaged-checkpoint-4", "damaged-checkpoint-4-2"]


def test_nothing_is_said_of_damaged_checkpoints_before_the_newest(again):
    write(STATE, "")(again.output / "checkpoints" / "checkpoint-2")
    (earlier,) = read_previous_runs(again).values()
    assert going_on("slim", earlier.checkpoints) == "slim continues from checkpoint-4."
    assert going_on("slim", Checkpoints()) == "slim starts from the beginning: no checkpoint was written."


def test_only_what_the_run_wrote_makes_room(tmp_path):
    folders = [tmp_path / f"checkpoint-{step}" for step in (2, 4)]
    for folder in folders:
        folder.mkdir()
    newest = KeepNewest(folders[:1])
    assert newest.path == folders[0]
    newest.delete()
    assert not folders[0].exists() and folders[1].exists() and newest.path is None


def test_a_record_of_an_earlier_version_had_what_it_does_not_name_by_default(base, pairs, tmp_path):
    from slim_core.training.report import TrainingRecord, describe_arguments
    from slim_core.training.resume import _check_same_settings

    asked = settings(base, pairs, tmp_path / "out")
    arguments = json.loads(json.dumps(describe_arguments(asked)))
    for name in ("loss", "options", "columns", "early_stopping"):
        del arguments[name]
    _check_same_settings(TrainingRecord("slim", arguments, {}), asked)
    with pytest.raises(TrainingError, match="had loss = 'cross-entropy', now it is 'eaft'"):
        _check_same_settings(
            TrainingRecord("slim", arguments, {}), settings(base, pairs, tmp_path / "out", loss="eaft")
        )
