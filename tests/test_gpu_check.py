# SPDX-License-Identifier: Apache-2.0
"""`scripts/gpu_check.sh`, as far as a machine without a GPU can try it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts" / "gpu_check.sh"


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": sys.executable, **environment}
    return subprocess.run([str(SCRIPT), *arguments], capture_output=True, text=True, env=environment, timeout=300)


def test_every_test_that_needs_a_gpu_has_the_mark_that_it_is_found_by():
    """One place knows whether there is a GPU; what uses it has the mark."""
    for path in (ROOT / "tests").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if path.name != "conftest.py" and path != Path(__file__):
            assert "cuda.is_available()" not in text, path


@pytest.mark.nightly
def test_a_dry_run_writes_the_numbers_and_a_table(tmp_path):
    result = run("--cpu", "--only", "bench-train", "--only", "no-such-step", str(tmp_path / "out"))
    assert result.returncode == 0, result.stdout + result.stderr
    check = json.loads((tmp_path / "out" / "check.json").read_text(encoding="utf-8"))
    assert check["machine"]["device"] == "cpu" and check["machine"]["versions"]["torch"] and check["tests"] is None
    ((step,), bench) = check["steps"], check["benches"]["bench-train"]
    assert (step["step"], step["code"]) == ("bench-train", "0")
    ways = [row["way"] for row in bench["cases"][0]["rows"]]
    text = (tmp_path / "out" / "check.md").read_text(encoding="utf-8")
    assert check["machine"]["date"][:10] in text and "| bench-train | well |" in text
    assert ways and all(f"| {way} | step |" in text for way in ways)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--gpu",), "There is no option --gpu; there are --cpu and --only STEP."),
        (("--cpu", "{there}"), "exists already: name a new folder."),
        (("{new}",), "torch finds no CUDA GPU on this machine. To try the script without one, add --cpu."),
    ],
)
def test_what_it_refuses(tmp_path, arguments, sentence):
    names = {"there": str(tmp_path), "new": str(tmp_path / "new")}
    result = run(*(argument.format(**names) for argument in arguments), CUDA_VISIBLE_DEVICES="")
    assert result.returncode != 0 and sentence in result.stderr
    assert not (tmp_path / "new").exists()
