# SPDX-License-Identifier: Apache-2.0
"""From nothing to a demo folder, at a size that takes seconds, and the checks of what is stored."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from slim_core.cli import app
from slim_core.demo import build as build_module
from slim_core.demo.build import BuildError, build
from slim_core.demo.measure import TASKS
from slim_core.demo.sweep import METHODS, Task, Trial, best, settings
from slim_core.demo.verify import VARIANTS, WEIGHTS, differences, load_report, load_results, save, verify
from slim_core.training.base import adapter_config


QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def built(recipe, plan, tmp_path_factory) -> Path:
    """A folder with a demo and the work on it. Tests that change it take `demo`."""
    root = tmp_path_factory.mktemp("built")
    with pytest.MonkeyPatch.context() as patch:
        # A base that knows nothing is good enough.
        patch.setattr(build_module, "ENOUGH", 0.0)
        build(root / "demo", root / "work", recipe, plan, QUIET, questions=20)
    return root


@pytest.fixture
def demo(built, monkeypatch, tmp_path) -> Path:
    """A copy of the demo, next to a copy of the work."""
    monkeypatch.setattr(build_module, "ENOUGH", 0.0)
    shutil.copytree(built, tmp_path, dirs_exist_ok=True)
    return tmp_path / "demo"


def test_build_leaves_a_demo_that_loads(built):
    demo = built / "demo"
    base = AutoModelForCausalLM.from_pretrained(demo / "base")
    assert base.dtype == torch.float32
    names = {
        kind: PeftModel.from_pretrained(base, demo / kind, kind).peft_config[kind].peft_type for kind in ("slim",)
    }
    assert names == {"slim": "SLIM"}
    assert json.loads((demo / "lora" / "adapter_config.json").read_text())["peft_type"] == "LORA"
    for file in WEIGHTS.values():
        kept = ("slim_center", "slim_var", "slim_reference", "slim_count", "slim_columns", "slim_rows")
        dtypes = {key: tensor.dtype for key, tensor in load_file(demo / file).items()}
        assert {dtype for key, dtype in dtypes.items() if not key.endswith(kept)} == {torch.bfloat16}
        assert torch.bfloat16 not in {dtype for key, dtype in dtypes.items() if key.endswith(kept)}
    text = "".join(path.read_text() for path in demo.rglob("*.json"))
    assert str(built) not in text, "a folder of this machine is in the files"
    results = load_results(demo)
    assert set(results["tasks"]) == set(TASKS)
    assert {task["n"] for task in results["tasks"].values()} == {20}
    report = load_report(demo)
    assert [(row["method"], row["rate"]) for row in report["sweep"]] == [
        ("lora", 1e-3), ("slim", 1e-3), ("lora", 1e-2), ("slim", 1e-2)
    ]  # fmt: skip


def test_adapters_have_equal_total_rank(tmp_path, plan):
    ranks = []
    for method in METHODS:
        task = Task(method, 1e-3, tmp_path, tmp_path, tmp_path)
        config = adapter_config(method, settings(task, plan))
        ranks.append(config.r * getattr(config, "num_experts", 1))
    assert ranks[0] == ranks[1] == 8 * plan.r


def trained(work: Path) -> dict[str, int]:
    """When each adapter was written."""
    return {path.parent.name: path.stat().st_mtime_ns for path in work.glob("sweep/*/adapter_model.safetensors")}


def test_a_second_build_trains_only_what_is_new(demo, recipe, plan, tmp_path, monkeypatch):
    def fail(*args):
        raise AssertionError("the base was trained again")

    monkeypatch.setattr(build_module.Pretraining, "_train", fail)
    before, results = trained(tmp_path / "work"), load_results(demo)
    assert len(before) == 4
    build(demo, tmp_path / "work", recipe, plan, QUIET, questions=20)
    assert trained(tmp_path / "work") == before
    assert load_results(demo) == results

    build(demo, tmp_path / "work", recipe, replace(plan, rates=(1e-3, 1e-2, 2e-2)), QUIET, questions=20)
    after = trained(tmp_path / "work")
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {"lora-0.02", "slim-0.02"}

    build(demo, tmp_path / "work", recipe, replace(plan, steps=3, rates=(1e-3,)), QUIET, questions=20)
    another = trained(tmp_path / "work")
    assert set(another) == {"lora-0.001", "slim-0.001"}
    assert all(another[name] > before[name] for name in another)


def test_a_poor_base_is_no_base_for_adapters(recipe, plan, tmp_path):
    with pytest.raises(BuildError, match=r"answers too little: sums 0\.0%.* at least 95% is needed"):
        build(tmp_path / "demo", tmp_path / "work", recipe, plan, QUIET, questions=20)
    assert not (tmp_path / "demo").exists()


def test_the_choice_hangs_on_downstream_alone():
    def trial(method, rate, downstream, general):
        from slim_core.demo.measure import DOWNSTREAM_TASKS, GENERAL_TASKS, Score

        scores = {t: Score(downstream, 0, 1) for t in DOWNSTREAM_TASKS} | {
            t: Score(general, 0, 1) for t in GENERAL_TASKS
        }
        return Trial(method, rate, Path(), scores)

    trials = [trial("lora", 1e-4, 0.5, 1.0), trial("lora", 1e-3, 0.9, 0.1), trial("lora", 1e-2, 0.9, 0.0)]
    trials += [trial("slim", 1e-3, 0.95, 0.9)]
    assert best(trials, "lora").rate == 1e-3
    assert best(trials, "slim").rate == 1e-3


def test_differences_find_a_false_number_and_other_weights(demo):
    results = verify(demo, 20)
    assert differences(results, demo) == []
    stored = load_results(demo)
    stored["tasks"]["facts"]["lora"]["score"] = 0.9
    save(stored, demo)
    [sentence] = differences(results, demo)
    assert sentence.startswith("lora on facts: stored 90.0%, but 0.0% of 20 questions")
    (demo / WEIGHTS["slim"]).write_bytes(b"something else")
    stored = results | {"sha256": results["sha256"] | {"slim": "0" * 64}}
    assert any("slim/adapter_model.safetensors is not the file" in line for line in differences(stored, demo))


def test_commands(demo):
    run = CliRunner().invoke(app, ["demo", "verify", "--demo", str(demo), "--questions", "20", "--no-write"])
    assert run.exit_code == 0, run.output
    assert "The stored results hold." in run.output
    run = CliRunner().invoke(app, ["demo", "verify", "--demo", str(demo), "--questions", "20"])
    assert run.exit_code == 0, run.output
    assert all(variant in run.output for variant in VARIANTS)
    (demo / WEIGHTS["lora"]).unlink()
    run = CliRunner().invoke(app, ["demo", "verify", "--demo", str(demo)])
    assert run.exit_code == 1
    assert "demo build" in run.output


def test_build_command_refuses_what_it_does_not_know(tmp_path):
    run = CliRunner().invoke(app, ["demo", "build", "--base", "size=3", "--work", str(tmp_path / "work")])
    assert run.exit_code == 2
    assert "no field 'size'" in run.output
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("text")
    run = CliRunner().invoke(app, ["demo", "build", "--output", str(tmp_path / "mine")])
    assert run.exit_code == 2
    assert (tmp_path / "mine" / "thesis.txt").exists()
    # Where the command works, it deletes what it finds.
    run = CliRunner().invoke(
        app, ["demo", "build", "--work", str(tmp_path / "work"), "--output", str(tmp_path / "work" / "demo")]
    )
    assert run.exit_code == 1 and "name a folder outside of it" in run.output
    assert not (tmp_path / "work").exists()
