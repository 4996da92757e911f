# SPDX-License-Identifier: Apache-2.0
"""`python -m slim_core train` as a user types it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest
from typer.testing import CliRunner

from slim_core.baselines.registry import METHODS
from slim_core.cli import app
from slim_core.training import Outcome, TrainSettings


SMALL = ["--rank", "2", "--experts", "4", "--batch-size", "4", "--log-every", "1"]


def run(*arguments: object):
    return CliRunner().invoke(app, ["train", *map(str, arguments)])


def test_one_command_trains_and_compares(base, pairs, tmp_path):
    result = run(
        *("--base", base, "--data", pairs, "--method", "lora", "--method", "slim", "--output", tmp_path / "out"),
        *("--max-steps", 2, "--slim", "num_clusters=4", "--slim", "yield_mode=calibrated", "--target", "q_proj"),
        *("--slim", "l1_coefficient=1e-4", *SMALL),
    )
    assert result.exit_code == 0, result.output
    assert "pairs.jsonl: 24 records for training" in result.output
    assert "as the model sees it" in result.output and "Same data" in result.output
    assert "slim step 2/2: loss" in result.output and "identity" in result.output and "l1" in result.output
    config = json.loads((tmp_path / "out" / "slim" / "adapter_config.json").read_text())
    assert (config["yield_mode"], config["num_clusters"], config["l1_coefficient"]) == ("calibrated", 4, 1e-4)
    assert config["target_modules"] == ["q_proj"]


NAMES = [":train:", "[bold]b[/bold]", "[/]", "a`|<b>*_", "a[link=file:///x]b", "\u202eabc", "é 日本 🚆"]


@pytest.mark.parametrize("name", NAMES)
def test_names_are_printed_as_they_are(name, base, pairs, tmp_path):
    data = pairs.rename(tmp_path / f"{name.replace('/', '÷')}.jsonl")
    out = tmp_path / name.replace("/", "÷")
    result = run("--base", base, "--data", data, "--output", out, "--max-steps", 1, *SMALL)
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    label = data.name if name.isprintable() else repr(data.name)[1:-1]
    assert any(f"{label}: 24 records for training" in line for line in lines)
    shown = out if name.isprintable() else repr(str(out))
    assert f"The slim adapter is in {shown}." in lines


def test_a_home_folder_that_the_shell_has_left_is_found(base, pairs, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "base").symlink_to(base)
    result = run("--base", "~/base", "--data", pairs, "--output", "~/out", "--max-steps", "1", "--rank", "2")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out" / "adapter_config.json").is_file()


def test_the_defaults_are_the_papers(tmp_path, monkeypatch):
    asked = []

    def keep(settings, console):
        asked.append(settings)
        return Outcome([], False)

    monkeypatch.setattr("slim_core.training.train", keep)
    result = run("--base", "b", "--data", "a.jsonl", "--output", tmp_path)
    assert result.exit_code == 0, result.output
    (defaults,) = asked
    assert defaults == TrainSettings(base="b", data=["a.jsonl"], output=tmp_path)
    assert (defaults.r, defaults.num_experts, defaults.num_identity, defaults.top_k) == (16, 8, 2, 2)
    assert (defaults.learning_rate, defaults.epochs, defaults.batch_size) == (3e-4, 2.0, 16)


NAMES = ", ".join(METHODS)
BAD = [
    (["--data", "missing.jsonl"], "Error: There is no file missing.jsonl"),
    (["--method", "qlora"], f"Error: --method must be one of {NAMES}, not qlora"),
    (["--slim", "clusters=3"], "Error: --slim has no field 'clusters'"),
    (["--prompt-column", "prompt"], "Error: Name both --prompt-column and --completion-column"),
    (["--resume"], "Error: There is no run to resume in"),
    (["--base", "./missing"], "Error: There is no folder ./missing; name a folder or a Hub id"),
    (["--base", ""], "Error: The base '' is neither a folder nor a Hub id"),
    (["--base", "~nobody-of-that-name/base"], "Error: There is no folder ~nobody-of-that-name/base; name"),
    (["--base", "long/" * 1000], "Error: The base 'long/long"),
    (["--base", "[bold]:train:"], "Error: The base '[bold]:train:' is neither a folder nor a Hub id"),
    (["--data", ":train:[red].jsonl"], "Error: No file matches the pattern :train:[red].jsonl"),
    (["--data", "a\nb\x1b.jsonl"], "Error: There is no file a\\nb\\x1b.jsonl"),
    (["--base-revision", "v2"], "Error: base"),
    (["--split", "test"], "Error: --split chooses a part of a data set, but "),
    (["--revision", "v2"], "Error: --revision chooses a part of a data set, but "),
    (["--validation-split", "test"], "Error: --validation-split chooses a part of a data set, but "),
    (["--validation", "missing.jsonl"], "Error: There is no file missing.jsonl; check the path."),
    (["--method", ":train:"], f"Error: --method must be one of {NAMES}, not :train:"),
]


@pytest.mark.parametrize("arguments,sentence", BAD)
def test_bad_input_is_one_sentence_and_exit_code_1(arguments, sentence, base, pairs, tmp_path):
    flags = {"--base": base, "--data": pairs, "--output": tmp_path / "out"}
    rest = [text for name, value in flags.items() if name not in arguments for text in (name, value)]
    result = run(*rest, *arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith(sentence) and result.stderr.count("\n") == 1
    assert "Traceback" not in result.output


def test_no_kernels_that_a_base_names_are_asked_for(base, pairs, tmp_path):
    copy = shutil.copytree(base, tmp_path / "base")
    fields = json.loads((copy / "config.json").read_text()) | {"_attn_implementation": "evil/repo"}
    (copy / "config.json").write_text(json.dumps(fields))
    result = run("--base", copy, "--data", pairs, "--output", tmp_path / "out", "--max-steps", 1, *SMALL)
    assert result.exit_code == 0, result.output


def test_two_processes_train_one_adapter_as_one_process_does(base, pairs, tmp_path):
    # 16 examples for training and 8 for validation divide evenly, so that no process is handed one twice. Clusters
    # that begin with data begin with those of the first process, and the gate averages their quantiles.
    arguments = ["--base", base, "--data", pairs, "--batch-size", 8, "--validation-share", "0.334", "--log-every", 1]
    arguments += ["--rank", 2, "--experts", 4, "--epochs", 2, "--slim", "merge=none", "--slim", "l1_coefficient=0.01"]
    arguments += ["--slim", "cluster_init=random", "--learning-rate", "0.01"]
    assert run(*arguments, "--output", tmp_path / "one").exit_code == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, "-m", "slim_core", "train", *arguments, "--output", tmp_path / "two"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(
        list(map(str, command)),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=90)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, errors
    assert output.count("The slim adapter is in") == 1
    one, two = (json.loads((tmp_path / name / "training.json").read_text()) for name in ("one", "two"))
    assert two["steps"] == one["steps"] == 4
    for name in ("validation_loss_before", "validation_loss_after"):
        assert two[name] == pytest.approx(one[name], abs=1e-3)
    for name in ("loss", "loss_l1", "identity_share"):
        curves = [[entry[name] for entry in record["curves"] if name in entry] for record in (one, two)]
        assert curves[1] == pytest.approx(curves[0], abs=2e-3), name
    shares = [entry["identity_share"] for entry in one["curves"] if "identity_share" in entry]
    assert 0 < min(shares) < max(shares) < 1


def test_ctrl_c_saves_and_exits_with_130(base, pairs, tmp_path):
    command = [sys.executable, "-m", "slim_core", "train", "--base", base, "--data", pairs]
    command += ["--output", tmp_path / "out", "--epochs", "1000", *SMALL]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        list(map(str, command)), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 60
        line = ""
        while "step 2/" not in line and time.monotonic() < deadline and process.poll() is None:
            line = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    assert "Interrupted; the training so far is saved." in errors and "Traceback" not in errors
    record = json.loads((tmp_path / "out" / "training.json").read_text())
    assert record["interrupted"] is True and 2 <= record["steps"] < record["total_steps"]
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
