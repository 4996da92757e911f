# SPDX-License-Identifier: Apache-2.0
"""From nothing to a demo folder, at a size that takes seconds, and the checks of what is stored."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from slim_core.cli import app
from slim_core.demo import build as build_module
from slim_core.demo import measure, sweep
from slim_core.demo.build import BuildError, build
from slim_core.demo.cards import CARD, PARAPHRASE, TEXTS, cards
from slim_core.demo.measure import DOWNSTREAM_TASKS, GENERAL_TASKS, TASKS
from slim_core.demo.pool import worker_pool
from slim_core.demo.report import differences_over_seeds, over_seeds, tables
from slim_core.demo.seeds import STRENGTHS, marks_by_seed, mean_marks
from slim_core.demo.stored import load_report, load_results, save
from slim_core.demo.sweep import _begin_worker, chosen, chosen_rate
from slim_core.demo.trial import METHODS, SCALES, Trial, TrialPlan, TrialTask, load, rewind, settings
from slim_core.demo.verify import WEIGHTS, compared, differences, jobs, sample, verify
from slim_core.demo.words import task_words
from slim_core.method import SlimLayer
from slim_core.training.base import adapter_config


QUIET = Console(quiet=True)
SHORT = 4  # tokens; answers of a base that knows nothing would go on to the limit


class Inline(Executor):
    """Does the work of a sweep in this process: a process of its own takes seconds to start."""

    def __init__(self, workers: int, begin: Callable[..., None], *shared) -> None:
        begin(*shared)

    def submit(self, function, *arguments) -> Future:
        done = Future()
        done.set_result(function(*arguments))
        return done


def begin_short(steps) -> None:
    """Begins a worker of the sweep: a process of its own knows nothing of what a test has changed."""
    measure.LONGEST_ANSWER = SHORT
    _begin_worker(steps)


def take_little(patch: pytest.MonkeyPatch, tokenizer) -> None:
    """Let a build take little: no worker processes, whose start takes seconds, and the tokenizer of all tests."""
    # A base that knows nothing is good enough.
    patch.setattr(build_module, "ENOUGH", 0.0)
    patch.setattr(build_module, "BASE_QUESTIONS", 8)
    patch.setattr(build_module, "train_tokenizer", lambda: tokenizer)
    patch.setattr(sweep, "worker_pool", Inline)
    patch.setattr(measure, "LONGEST_ANSWER", SHORT)


@pytest.fixture(scope="module")
def built(tokenizer, recipe, conversations, plan, tmp_path_factory) -> Path:
    """A folder with a demo and the work on it. Tests that change it take `demo`."""
    root = tmp_path_factory.mktemp("built")
    with pytest.MonkeyPatch.context() as patch:
        take_little(patch, tokenizer)
        build(root / "demo", root / "work", recipe, conversations, plan, QUIET, questions=20)
    return root


@pytest.fixture
def cheap(tokenizer, monkeypatch) -> None:
    """Another build takes little, as that of `built`."""
    take_little(monkeypatch, tokenizer)


@pytest.fixture
def demo(built, cheap, tmp_path) -> Path:
    """A copy of the demo, next to a copy of the work."""
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
        kept = (*SlimLayer.statistic_names, "slim_columns", "slim_rows")
        dtypes = {key: tensor.dtype for key, tensor in load_file(demo / file).items()}
        assert {dtype for key, dtype in dtypes.items() if not key.endswith(kept)} == {torch.bfloat16}
        assert torch.bfloat16 not in {dtype for key, dtype in dtypes.items() if key.endswith(kept)}
    text = "".join(path.read_text() for path in demo.rglob("*.json"))
    assert str(built) not in text, "a folder of this machine is in the files"
    results = load_results(demo)
    assert set(results["tasks"]) == set(TASKS)
    assert {task["n"] for task in results["tasks"].values()} == {20}
    assert set(results["marks"]) == {variant.name for variant in compared(demo)}
    assert {len(text) for marks in results["marks"].values() for text in marks.values()} == {20}
    report = load_report(demo)
    assert [(row["rate"], row["method"], row["seed"]) for row in report["sweep"]] == [
        (1e-3, method, seed) for method in METHODS for seed in (1, 2)
    ]
    for row in report["sweep"]:
        measured = [point["scale"] for point in row["rewound"]]
        assert measured == (list(SCALES) if (row["method"], row["seed"]) == ("lora", 1) else [])
    assert set(report["base"]["conversations"]) >= {*TASKS, "turn 4", "follow-ups"}
    # What `verify` measured, as it ships, is not measured again.
    assert {name: set(marks) for name, marks in report["seeds"].items()} == {
        "lora": {"2"},
        "lora_half": {"1", "2"},
        **{key: {"2"} for key in ("slim", *STRENGTHS)},
    }
    by_seed = marks_by_seed(results, report)
    assert {name: list(marks) for name, marks in by_seed.items()} == {
        key: ["1", "2"] for key in [*METHODS, *STRENGTHS]
    }
    for name in ("lora", "slim", *STRENGTHS):
        assert by_seed[name]["1"] == results["marks"][name]
    assert {len(text) for seeds in by_seed.values() for marks in seeds.values() for text in marks.values()} == {20}


def test_differences_over_seeds_are_of_the_mean_share_of_each_question():
    tasks = dict.fromkeys(TASKS, "0000")
    lora = {"1": tasks, "2": tasks}
    slim = {"1": dict.fromkeys(TASKS, "1100"), "2": dict.fromkeys(TASKS, "1000")}
    assert mean_marks(slim) == {task: [1.0, 0.5, 0.0, 0.0] for task in TASKS}
    by_seed = {"lora": lora, "lora_half": lora, "slim": slim, **dict.fromkeys(STRENGTHS, slim)}
    results = {"marks": {name: seeds["1"] for name, seeds in by_seed.items() if name != "lora_half"}}
    others = {name: {"2": seeds["2"]} for name, seeds in by_seed.items()}
    build = {"chosen": {method: {"seed": 1} for method in METHODS}, "seeds": others | {"lora_half": lora}}
    assert marks_by_seed(results, build) == by_seed
    table = differences_over_seeds(by_seed)
    assert [row[2].split()[0] for row in table.rows] == ["+37.5"] * 6 + ["+0.0"] * 2
    means = over_seeds(by_seed)
    assert [row[2:] for row in means.rows] == [
        *[("0.0 (0.0–0.0)", "0.0 (0.0–0.0)")] * 2,
        *[("37.5 (25.0–50.0)", "37.5 (25.0–50.0)")] * 4,
    ]


def test_methods_have_equal_total_rank(tmp_path, plan):
    ranks, linears = [], []
    for method in METHODS:
        task = TrialTask(method, 1e-3, 1, tmp_path, tmp_path, tmp_path)
        made = settings(task, plan)
        config = adapter_config(made.methods[0], made, {})
        ranks.append(config.r * getattr(config, "num_experts", 1))
        linears.append(set(config.target_modules))
    assert set(ranks) == {8 * plan.r}
    assert linears == [set(plan.targets), set(plan.half), set(plan.targets)]


def test_a_rewound_lora_is_the_base_at_zero(built):
    demo = built / "demo"
    ids = torch.arange(6, 40)[None]
    base, lora, half = (load(demo / "base", folder)[0] for folder in (None, demo / "lora", demo / "lora"))
    # Two steps of training hardly move it.
    with torch.no_grad():
        for model in (lora, half):
            for name, parameter in model.named_parameters():
                if ".lora_B." in name:
                    parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    rewind(half, 0.5)
    outputs = [model(ids).logits for model in (base, lora, half)]
    assert not torch.allclose(outputs[0], outputs[2]) and not torch.allclose(outputs[1], outputs[2])
    rewind(half, 0.0)
    assert torch.equal(half(ids).logits, outputs[0])


def trained(work: Path) -> dict[str, int]:
    """When each adapter was written."""
    return {path.parent.name: path.stat().st_mtime_ns for path in work.glob("sweep/*/adapter_model.safetensors")}


@pytest.mark.nightly
def test_a_second_build_trains_only_what_is_new(demo, recipe, conversations, plan, tmp_path, monkeypatch):
    def fail(*args):
        raise AssertionError("the base was trained again")

    def again(plan, questions=1):
        build(demo, tmp_path / "work", recipe, conversations, plan, QUIET, questions)
        return trained(tmp_path / "work")

    monkeypatch.setattr(build_module.Pretraining, "_train", fail)
    before, results = trained(tmp_path / "work"), load_results(demo)
    assert len(before) == 2 * len(METHODS)
    assert again(plan, questions=20) == before
    assert load_results(demo) == results

    after = again(replace(plan, rates=(1e-3, 2e-2), seeds=(1,)))
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {"lora-0.02-1", "lora_half-0.02-1", "slim-0.02-1"}

    # Only SLIM hangs on its own fields.
    another = again(replace(plan, slim=plan.slim | {"num_clusters": 8}, rates=(1e-3,), seeds=(1,)))
    assert {name for name in after if another[name] != after[name]} == {"slim-0.001-1"}

    last = again(replace(plan, steps=3, rates=(1e-3,), seeds=(1,)))
    changed = {"lora-0.001-1", "lora_half-0.001-1", "slim-0.001-1"}
    assert {name for name in last if last[name] != another[name]} == changed


def test_conversations_are_learned_anew_where_the_questions_were(cheap, recipe, conversations, tmp_path):
    work = tmp_path / "work"

    def weights(recipe, conversations):
        build_module.build_base(work, recipe, conversations, QUIET)
        return [load_file(work / name / "model.safetensors") for name in ("questions", "base")]

    def same(one, other):
        return all(torch.equal(one[name], other[name]) for name in one)

    first, second = weights(recipe, conversations)
    assert not same(first, second)
    another = weights(recipe, replace(conversations, rate=2e-3))
    assert same(another[0], first) and not same(another[1], second)
    anew = weights(replace(recipe, seed=1), replace(conversations, rate=2e-3))
    assert not same(anew[0], first) and not same(anew[1], another[1])


def test_a_poor_base_is_no_base_for_adapters(cheap, recipe, conversations, plan, tmp_path, monkeypatch):
    monkeypatch.setattr(build_module, "ENOUGH", 0.95)
    with pytest.raises(BuildError, match=r"answers too few questions correctly: sums 0\.0%.* at least 95% is needed"):
        build(tmp_path / "demo", tmp_path / "work", recipe, conversations, plan, QUIET, questions=20)
    assert not (tmp_path / "demo").exists()


def test_the_choice_hangs_on_downstream_alone():
    def trial(method, rate, seed, downstream, general):
        scores = dict.fromkeys(DOWNSTREAM_TASKS, downstream) | dict.fromkeys(GENERAL_TASKS, general)
        return Trial(method, rate, seed, Path(), scores)

    trials = [trial("lora", 1e-4, 1, 0.5, 1.0), trial("lora", 1e-3, 1, 0.9, 0.1), trial("lora", 1e-2, 1, 0.9, 0.0)]
    trials += [trial("slim", 1e-3, 1, 0.95, 0.9)]
    assert chosen_rate(trials, "lora") == 1e-3
    assert chosen_rate(trials, "slim") == 1e-3
    # The mean over the seeds counts, and the first seed ships.
    trials += [trial("lora", 1e-4, 2, 1.0, 1.0), trial("lora", 1e-3, 2, 0.3, 0.1), trial("lora", 1e-2, 2, 0.3, 0.0)]
    assert chosen_rate(trials, "lora") == 1e-4
    assert chosen(trials, "lora", TrialPlan(seeds=(1, 2))) is trials[0]


def test_results_of_other_weights_or_of_other_scores_are_found(demo):
    sampled = sample(demo, 20)
    assert differences(sampled, demo) == []
    results = load_results(demo)
    results["tasks"]["sums"]["base"]["score"] = 0.9
    save(results, demo)
    assert any(line.startswith("base on sums: stored 90.0%, but 0.0% of 20") for line in differences(sampled, demo))
    (demo / WEIGHTS["slim"]).write_bytes(b"something else")
    stored = sampled | {"sha256": sampled["sha256"] | {"slim": "0" * 64}}
    assert any("slim/adapter_model.safetensors is not the file" in line for line in differences(stored, demo))


@pytest.mark.nightly
def test_worker_processes_train_the_same_adapters(demo, recipe, conversations, plan, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "worker_pool", worker_pool)
    monkeypatch.setattr(sweep, "_begin_worker", begin_short)
    results = load_results(demo)
    shutil.rmtree(tmp_path / "work" / "sweep")
    build(demo, tmp_path / "work", recipe, conversations, plan, QUIET, questions=20)
    assert len(trained(tmp_path / "work")) == 2 * len(METHODS) and load_results(demo) == results


@pytest.mark.nightly
def test_results_do_not_hang_on_the_workers(demo, tokenizer):
    # Any token ends an answer, in the workers too.
    file = demo / "base" / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": list(range(len(tokenizer)))}))
    names = []
    two = verify(demo, 3, workers=2, report=names.append)
    assert len(names) == jobs(demo)
    assert verify(demo, 3) == two


def test_every_table_has_all_of_its_columns(built):
    demo = built / "demo"
    all_tables = tables(load_results(demo), load_report(demo))
    assert len(all_tables) == 10
    for table in all_tables:
        assert table.rows and {len(row) for row in table.rows} == {len(table.columns)}
        lines = table.markdown().splitlines()
        assert {line.count(" | ") for line in lines[2:]} == {len(table.columns) - 1}
    assert len(tables(load_results(demo), None)) == 6


def test_commands(demo):
    def run(*arguments):
        return CliRunner().invoke(app, ["demo", *arguments, "--demo", str(demo)])

    verified = run("verify", "--questions", "20", "--no-write")
    assert verified.exit_code == 0, verified.output
    assert "The stored results are confirmed." in verified.output
    anew = run("verify", "--questions", "20")
    assert anew.exit_code == 0, anew.output
    assert all(task_words(task).split()[0] in anew.output for task in TASKS)
    assert {name: (demo / name / CARD).read_text() for name in TEXTS} == cards(load_results(demo))
    reported = run("report", "--markdown")
    assert reported.exit_code == 0 and "| task | n | base | LoRA | SLIM | SLIM, open |" in reported.output
    (demo / WEIGHTS["lora"]).unlink()
    lacking = run("verify")
    assert lacking.exit_code == 1
    assert "demo build" in lacking.output


def test_cards_have_the_ablation_and_what_it_costs(built):
    results = load_results(built / "demo")
    slim, lora = (cards(results)[name] for name in ("slim", "lora"))
    metadata = ModelCard(slim).data
    assert (metadata.library_name, metadata.license, metadata.tags) == ("peft", "apache-2.0", ["slim"])
    for card in (slim, lora):
        assert "| what | base | LoRA | SLIM | SLIM, open |" in card
        for variant in ("slim", "slim_open"):
            assert f"{100 * results['means']['general'][variant][0]:.1f} (" in card
    paraphrase = results["forms"]["downstream"][PARAPHRASE]
    assert f"SLIM {100 * paraphrase['slim'][0]:.1f}; SLIM, open {100 * paraphrase['slim_open'][0]:.1f}." in slim
    assert "import slim_core" in slim and "import slim_core" not in lora


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
