# SPDX-License-Identifier: Apache-2.0
"""`scripts/gpu_check.sh`, as far as a machine without a GPU can try it."""

from __future__ import annotations

import json
import os
import re
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
            assert "cuda.is_available()" not in text and "mark.gpu" not in text, path


@pytest.mark.nightly
def test_a_dry_run_writes_the_numbers_and_a_table(tmp_path):
    result = run("--cpu", "--only", "bench-train", str(tmp_path / "out"))
    assert result.returncode == 0, result.stdout + result.stderr
    check = json.loads((tmp_path / "out" / "check.json").read_text(encoding="utf-8"))
    assert check["machine"]["device"] == "cpu" and check["machine"]["versions"]["torch"] and check["tests"] is None
    ((step,), bench) = check["steps"], check["benches"]["bench-train"]
    assert (step["step"], step["code"]) == ("bench-train", "0")
    ways = [row["way"] for row in bench["cases"][0]["rows"]]
    text = (tmp_path / "out" / "check.md").read_text(encoding="utf-8")
    assert check["machine"]["date"][:10] in text and "| bench-train | well |" in text
    assert ways and all(f"| {way} | step |" in text for way in ways)


def test_the_script_knows_the_names_of_its_steps():
    text = SCRIPT.read_text(encoding="utf-8")
    called = re.findall(r"^step ([\w-]+)", text, re.M)
    called += [f"bench-{name}" for name in re.findall(r"^bench ([\w-]+)", text, re.M)]
    called += re.findall(r"^train ([\w-]+)", text, re.M)
    (named,) = re.findall(r'^steps="(.*)"$', text, re.M)
    assert len(called) > 5 and sorted(named.split()) == sorted(called)


def test_the_report_says_what_did_not_run(tmp_path):
    steps = [("tests", "0", 40, "pytest"), ("bench-memory", "124", 60, "bench"), ("train", "1", 9, "train")]
    lines = ["\t".join(map(str, step)) + "\n" for step in steps]
    (tmp_path / "steps.tsv").write_text("".join(lines), encoding="utf-8")
    suite = '<testsuites><testsuite tests="2" failures="0" errors="0" skipped="2"/></testsuites>'
    (tmp_path / "tests.xml").write_text(suite, encoding="utf-8")
    rows = [{"way": "base", "peak": 2_000_000, "weights": 1_000_000}, {"way": "all", "peak": None, "weights": 2**21}]
    bench = {"cases": [{"title": "1B", "rows": rows}]}
    (tmp_path / "bench-memory.json").write_text(json.dumps(bench), encoding="utf-8")
    subprocess.run([sys.executable, ROOT / "scripts" / "gpu_report.py", tmp_path, "cpu"], check=True)
    text = (tmp_path / "check.md").read_text(encoding="utf-8")
    assert "tried the script on a CPU" in text
    for line in (
        "| tests | well | 40 |",
        "| bench-memory | out of its time | 60 |",
        "| train | code 1 | 9 |",
        "tests 2, failures 0, errors 0, skipped 2: no test ran",
        "| base | 1 | 2 | 1 |",
        "| all |  |  | 2.1 |",
    ):
        assert line in text.splitlines(), text
    assert json.loads((tmp_path / "check.json").read_text(encoding="utf-8"))["tests"]["skipped"] == 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--cpu", "--only", "bench"), "There is no step bench; the steps are: tests bench-decode"),
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
