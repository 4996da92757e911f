# SPDX-License-Identifier: Apache-2.0
"""`paper` as a person calls it, on a base that knows nothing and trainings of two steps."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from pathlib import Path
from statistics import fmean

import pytest
import torch
from transformers import AutoConfig, LlamaForCausalLM
from typer.testing import CliRunner

from slim_core.cli import app
from slim_core.demo import measure
from slim_core.demo import tasks as demo_tasks
from slim_core.demo.trial import TrialPlan
from slim_core.evaluation.tasks import Asking, load_tasks
from slim_core.paper import execute
from slim_core.paper.experiments import EXPERIMENTS, contender, steps_of
from slim_core.paper.published import TABLE
from slim_core.paper.runs import Cell
from slim_core.paper.scales import DemoScale, FullScale
from slim_core.paper.work import WorkFolder
from slim_core.paths import DEMO
from slim_core.training.usable import check_usable
from tests.paper.stored import answers, measured


HOW = ["--steps", "2", "--questions", "2", "--rates", "0.01"]
PLAN = [word for field in ("examples=12", "batch=2", "r=2") for word in ("--plan", field)]
TABLE2 = ["table2", "--only", "lora", "lora-rewound-0.5", "slim", "--seeds", "1", "2"]


@pytest.fixture(scope="module", autouse=True)
def short_answers():
    """A base that knows nothing would go on to the limit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "LONGEST_ANSWER", 3)
        patch.setattr(demo_tasks, "LONGEST_ANSWER", 3)
        yield


def run(*words, plan=True):
    return CliRunner(env={"COLUMNS": "250"}).invoke(app, ["paper", *map(str, words), *(HOW + PLAN if plan else [])])


@pytest.fixture(scope="module")
def done(base, tmp_path_factory) -> Path:
    """A working folder with a small table 2."""
    folder = tmp_path_factory.mktemp("work")
    result = run(*TABLE2, "--base", base, "--work", folder)
    assert result.exit_code == 0, result.output
    return folder


def test_one_file_says_what_the_answers_say(done):
    saved = json.loads((done / "table2-demo.json").read_text(encoding="utf-8"))
    assert (saved["format"], saved["experiment"], saved["missing"]) == ("slim-paper", "table2", [])
    by_column = answers(done, saved)
    part = saved["parts"]["mixed"]
    columns = ["base", *(f"{name}@{seed}" for seed in (1, 2) for name in ("lora", "lora-rewound-0.5", "slim"))]
    assert [variant["name"] for variant in part["variants"]] == columns
    kinds = [task["kind"] for task in part["tasks"]]
    assert (kinds.count("general"), kinds.count("downstream")) == (5, 3)
    for task in part["tasks"]:
        scores = next(t["scores"] for t in part["summary"][0]["tasks"] if t["name"] == task["name"])
        for column in columns:
            marks = [answer["mark"] for answer in by_column[column][task["name"]]]
            assert len(marks) == 2 and scores[column][0] == fmean(marks)
    # With the base, and with LoRA from the same seed.
    pairs = [(c["first"], c["second"]) for c in part["summary"][0]["kinds"]["general"]["comparisons"]]
    assert pairs.count(("slim@2", "lora@2")) == 1 and ("slim@2", "lora@1") not in pairs
    assert sorted(second for first, second in pairs if first == "lora@1") == ["base"]
    assert (done / "table2-demo-mixed.html").read_text(encoding="utf-8").count('role="img"') == 1
    points = {point["name"]: point for point in saved["plane"]}
    assert list(points) == ["base", "lora", "lora-rewound-0.5", "slim"] and points["lora"]["rate"] == 0.01
    general = [t["name"] for t in part["tasks"] if t["kind"] == "general"]
    by_seed = [fmean(fmean(a["mark"] for a in by_column[f"slim@{seed}"][t]) for t in general) for seed in (1, 2)]
    assert points["slim"]["general"]["seeds"] == by_seed
    assert points["slim"]["general"]["score"] == pytest.approx(fmean(by_seed))
    assert saved["tables"][0]["columns"][:3] == ["method", "seeds", "downstream"]
    assert [row[0] for row in saved["tables"][0]["rows"]] == ["base", "LoRA", "LoRA × 0.5", "SLIM"]


def test_a_task_that_does_not_fit_the_base_is_left_out(base, tmp_path, monkeypatch):
    """Of the measurement and of the tables, both of which say so; if none fits, there is nothing to measure."""
    long = {"prompt": "Lima? " * 1000, "choices": ["yes", "no"], "answer": 0}
    (tmp_path / "long.jsonl").write_text(json.dumps(long) + "\n", encoding="utf-8")
    too_long, usual = load_tasks([str(tmp_path / "long.jsonl")], Asking()), DemoScale.tasks
    words = ["overhead", "--only", "lora", "--seeds", 1, "--base", base, "--work", tmp_path / "work"]
    monkeypatch.setattr(DemoScale, "tasks", lambda self, part: too_long)
    alone = run(*words)
    assert alone.exit_code == 1 and "Error: No item of long could be solved: The conversation has" in alone.stderr
    monkeypatch.setattr(DemoScale, "tasks", lambda self, part: [*usual(self, part)[:1], *too_long])
    result = run(*words)
    assert result.exit_code == 0, result.output
    sentence = r"No item of long could be solved: The conversation has .* This task is left out\."
    assert re.search(f"LoRA at 0.01, seed 1: {sentence}", result.stderr)
    for said in (result.stdout, run(*words, "--report").stdout):
        assert re.search(sentence, " ".join(said.split()))
    saved = json.loads((tmp_path / "work/overhead-demo.json").read_text(encoding="utf-8"))
    assert [task["name"] for task in saved["parts"]["mixed"]["tasks"]] == ["demo_sums"]


def test_a_rewound_lora_is_the_trained_one_with_half_of_its_factor(done):
    alphas = {
        path.parent.name: json.loads(path.read_text())["lora_alpha"]
        for path in (done / "trained").glob("lora-*/adapter_config.json")
    }
    trained = [name for name in alphas if "rewound" not in name]
    assert len(trained) == 2 and len(alphas) == 4
    for name, alpha in alphas.items():
        origin = next(original for original in trained if name.startswith(original))
        assert alpha == alphas[origin] * (0.5 if name != origin else 1)


def test_the_table_says_what_the_file_says(done, base):
    result = run(*TABLE2, "--base", base, "--work", done, "--report", "--markdown")
    assert result.exit_code == 0, result.output
    rows = {line.split("|")[1].strip(" *"): line for line in result.stdout.split("\n\n")[1].splitlines()}
    assert list(rows) == ["method", "---", "base", "LoRA", "LoRA × 0.5", "SLIM"]
    cells = [cell.strip(" *") for cell in rows["LoRA"].split("|")[1:-1]]
    paper = fmean((TABLE["lora"].mmlu, TABLE["lora"].gsm8k, TABLE["lora"].piqa))
    assert cells[1] == "2" and cells[-2:] == ["77.4", f"{paper:.1f}"]
    part = json.loads((done / "table2-demo.json").read_text())["parts"]["mixed"]
    means = [
        fmean(task["scores"][f"lora@{seed}"][0] for task in part["summary"][0]["tasks"] if task["kind"] == "general")
        for seed in (1, 2)
    ]
    assert cells[4].startswith(f"{100 * fmean(means):.1f} (")
    assert cells[5] == f"{100 * min(means):.1f}–{100 * max(means):.1f}"
    assert "The paper's numbers are of another base" in result.stdout and "missing" not in result.stdout


def test_a_table_that_was_ended_goes_on_to_the_same_file(done, base, tmp_path, monkeypatch):
    work = tmp_path / "work"
    shutil.copytree(done, work)
    (work / "table2-demo.json").unlink()
    for path in (*(work / "trained").glob("slim-0.01-2-*"), *(work / "measured").glob("*-0.01-2-*")):
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    def ended(settings):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(execute, "train", ended)
        result = run(*TABLE2, "--base", base, "--work", work)
    assert result.exit_code == 130 and "the same command continues from here" in result.stderr
    part = run(*TABLE2, "--base", base, "--work", work, "--report")
    assert part.exit_code == 0 and "1 of 6 cells are missing: SLIM at 0.01, seed 2." in part.stdout
    assert run(*TABLE2, "--base", base, "--work", work).exit_code == 0
    # A training repeated from its seed gives the same adapter, so nothing depends on the interruption.
    assert (work / "table2-demo.json").read_bytes() == (done / "table2-demo.json").read_bytes()


def test_a_training_that_was_ended_elsewhere_begins_anew(done, base, tmp_path):
    """As where the project, the base or the work folder has moved."""
    work = tmp_path / "work"
    shutil.copytree(done, work)
    (work / "table2-demo.json").unlink()
    (answers,) = (work / "measured").glob("slim-0.01-2-*")
    answers.unlink()
    (folder,) = (work / "trained").glob("slim-0.01-2-*")
    record = json.loads((folder / "training.json").read_text())
    record |= {"status": "interrupted", "arguments": record["arguments"] | {"base": "/elsewhere/base"}}
    (folder / "training.json").write_text(json.dumps(record))
    assert run(*TABLE2, "--base", base, "--work", work).exit_code == 0
    assert (work / "table2-demo.json").read_bytes() == (done / "table2-demo.json").read_bytes()


def test_a_difference_is_taken_over_the_seeds_that_both_have(done, base, tmp_path):
    """With one seed of SLIM, that of LoRA's other seed does not count."""
    work = tmp_path / "work"
    shutil.copytree(done, work)
    for path in (work / "measured").glob("slim-0.01-2-*"):
        path.unlink()
    # A base that knows nothing leaves nothing to differ, so LoRA's other seed gets everything right.
    (lucky,) = [path for path in (work / "measured").glob("lora-0.01-2-*") if "rewound" not in path.name]
    stored = measured(lucky)
    for sample in (sample for samples in stored["samples"].values() for sample in samples):
        sample["answers"]["row"]["mark"] = 1.0
    lucky.write_bytes(gzip.compress(json.dumps(stored).encode()))
    words = ["table2", "--only", "lora", "slim", "--base", base, "--work", work, "--report", "--markdown", "--seeds"]
    reported = []
    for seeds in ((1,), (1, 2)):
        lines = run(*words, *seeds).stdout.splitlines()
        reported.append([line for line in lines if line.startswith(("| SLIM | downstream", "| SLIM | general"))])
    # p depends on how many tests there are; the differences do not.
    one, both = ([line.split("|")[3:6:2] for line in lines] for lines in reported)
    assert len(one) == 2 and one == both


def test_what_is_missing_is_shown_as_missing(done, base):
    result = run("table2", "--only", "lora", "mola", "--seeds", 1, "--base", base, "--work", done, "--report")
    assert result.exit_code == 0, result.output
    (row,) = [line for line in result.stdout.splitlines() if line.startswith("MoLA") and "not measured" in line][:1]
    assert row.split()[1] == "0" and "53.2" not in row.split()[2:4]
    assert "1 of 2 cells are missing: MoLA at 0.01, seed 1." in result.stdout
    nothing = run("masking", "--seeds", 7, "--base", base, "--work", done, "--report")
    assert nothing.exit_code == 0 and nothing.stdout.count("not measured") == 16


def test_other_experiments_share_what_is_trained(done, base):
    plan = run("overhead", "--only", "lora", "slim", "--seeds", 1, "--base", base, "--work", done, "--dry-run")
    assert "Nothing is left to do." in plan.stderr and plan.stderr.count(": finished") == 2
    cost = run("overhead", "--only", "lora", "slim", "--seeds", 1, "--base", base, "--work", done, "--report")
    assert cost.exit_code == 0 and "1.00" in cost.stdout and "memory" in cost.stdout
    cases = run("case-study", "--only", "slim", "--seeds", 1, "--base", base, "--work", done, "--report")
    assert cases.exit_code == 0, cases.output


def test_of_several_rates_the_one_with_the_lowest_validation_loss_counts(done, base):
    words = ["table2", "--only", "lora", "--seeds", "1", "--base", str(base), "--work", str(done)]
    half = [*HOW[:-1], "0.01", "0.02"]
    result = CliRunner(env={"COLUMNS": "250"}).invoke(app, ["paper", *words, *half, *PLAN])
    assert result.exit_code == 0, result.output
    saved = json.loads((done / "table2-demo.json").read_text())
    losses = {cell["cell"]: cell["validation_loss"] for cell in saved["rows"][0]["cells"]}
    best = min(losses, key=losses.get)
    assert [cell["column"] for cell in saved["rows"][0]["cells"] if cell["cell"] == best] == ["lora@1"]
    assert {cell["column"] for cell in saved["rows"][0]["cells"]} == {"lora@1", max(losses, key=losses.get)}
    assert "Every rate" in result.stdout and "lowest validation loss" in result.stdout
    # Before all rates are trained there is no choice, which is not the same as nothing measured.
    more = CliRunner(env={"COLUMNS": "250"}).invoke(app, ["paper", *words, *half, "0.03", *PLAN, "--report"])
    (row,) = [line for line in more.stdout.splitlines() if line.startswith("LoRA") and "paper" not in line][:1]
    assert row.count("rate not chosen yet") == 2 and "1 of 3 cells are missing" in more.stdout
    run(*TABLE2, "--base", base, "--work", done, "--report")  # for the other tests


def test_two_processes_do_not_do_the_same(done, base):
    work = WorkFolder(done, DemoScale(base))
    with work.locked(done / "one") as first, work.locked(done / "one") as second, work.locked(done / "two") as other:
        assert (first, second, other) == (True, False, True)
    with work.locked(done / "one") as again:
        assert again


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["table2", "--only", "slimm"], "table2 has no 'slimm'; there are lora, dora,"),
        (["table2", "--steps", "2", "3"], "--steps has 3 numbers; only the experiment `steps` takes several."),
        (["table2", "--seeds", "1", "1"], "--seeds names something twice"),
        (["sequence", "--rates", "0.1", "0.2"], "all stages of a sequence have one rate"),
        (["table2", "--rates", "0"], "--rates must be above 0 and below 1."),
        (["table2", "--data-dir", "."], "--data-dir is for --scale full"),
        (["table2", "--plan", "width=3"], "--plan has no field 'width'; there are steps,"),
        (["table2", "--base", "nothing"], "nothing has no model.safetensors"),
        (["table2", "--scale", "full", "--plan", "r=2"], "--plan is for --scale demo"),
        (["table2", "--scale", "full", "--data-dir", "nothing"], "There is no nothing; name something else with"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(words, sentence, tmp_path):
    plan = [] if "full" in words else HOW[:4] if "--steps" in words or "--rates" in words else HOW + PLAN
    result = run(*words, *plan, "--work", tmp_path, plan=False)
    assert result.exit_code == 1 and sentence in result.stderr, result.output
    assert "Traceback" not in result.output and not any(tmp_path.iterdir())


# Words of files and of the command line, not of people.
KEYS = re.compile(r"\b(?:demo_\w+|obqa|siqa|boolq|openbookqa|social_iqa|lora-\w|slim-\w|yes_no)|@\d")


@pytest.mark.parametrize("scale", [DemoScale(DEMO / "base"), FullScale()], ids=["demo", "full"])
def test_tables_and_progress_are_in_words(scale):
    for build in (*EXPERIMENTS.values(), steps_of((10, 20))):
        experiment = build(scale.sets)
        cells = experiment.cells([1e-3], [1])
        assert not [cell.words for cell in cells if KEYS.search(cell.words)]
        # Whoever reads which cells are missing can tell them apart.
        assert len({cell.words for cell in cells}) == len(cells), experiment.name
        assert not KEYS.search(f"{experiment.title} {experiment.note}")
    assert not KEYS.search(scale.sentence)


def shown(page: str) -> str:
    """What a report shows, without the folders that the adapters are from."""
    body = page[page.index("<h1>") :]
    rows = re.sub(r'<td class="text">[^<]*</td>', "", body)
    return re.sub(r"<[^>]*>", " ", rows[: rows.index("<h2>Items")])


def test_the_page_is_in_words(done):
    page = (done / "table2-demo-mixed.html").read_text(encoding="utf-8")
    assert not KEYS.search(shown(page))
    assert "LoRA × 0.5, seed 2" in page and "<td>LoRA × 0.5</td><td>general</td><td>2</td>" in page


def test_an_unknown_set_is_named_before_anything_starts(base, tmp_path):
    result = run(
        "sequence",
        "--scale",
        "full",
        "--base",
        base,
        "--downstream",
        "obqa",
        "--dry-run",
        "--work",
        tmp_path,
        plan=False,
    )
    assert result.exit_code == 1 and "There is no downstream set 'obqa'" in result.stderr


def test_every_row_of_every_experiment_can_be_trained():
    """Each adapter fits the base and passes the checks, and no two rows of a table share a name, or do the same."""
    scale = DemoScale(DEMO / "base", TrialPlan())
    config = AutoConfig.from_pretrained(DEMO / "base")
    work = WorkFolder(Path("nowhere"), scale)
    checked: set[str] = set()
    for build in (*EXPERIMENTS.values(), steps_of((10, 20))):
        experiment = build(scale.sets)
        names = [row.name for row in experiment.contenders]
        assert len(set(names)) == len(names)
        assert experiment.rival in names
        cell_files = [work.files_of(Cell(row, 1e-3, 1)) for row in experiment.contenders]
        if experiment.name != "ablation":
            assert len({files.measured for files in cell_files}) == len(cell_files), experiment.name
        for row in experiment.contenders:
            asked = scale.settings(Cell(row, 1e-3, 1), Path("data"), Path("folder"))
            if repr(row.setup) not in checked:
                checked.add(repr(row.setup))
                check_usable(asked, asked.methods, config, closing=None)
            full = FullScale().settings(Cell(row, 1e-3, 1), Path("data"), Path("folder"))
            assert full.methods == [row.setup.method] and full.r == 16


def test_the_papers_numbers_stand_only_beside_what_learned_all_tasks_together():
    """They are of the training on OBQA, SIQA and BoolQ together."""
    rows = EXPERIMENTS["table1"](DemoScale(DEMO / "base").sets).contenders
    together = {row.name for row in rows if row.data == "mixed"}
    assert {row.name for row in rows if row.paper} == together == {*TABLE}


def test_noise_is_five_percent_of_small_talk(base, tmp_path):
    scale = DemoScale(base, TrialPlan(examples=95, earlier=(0,)))
    for name in ("mixed", "noisy", "obqa"):
        scale.write_set(name, tmp_path / name)
    mixed, noisy, alone = ((tmp_path / name).read_text().splitlines() for name in ("mixed", "noisy", "obqa"))
    assert (len(mixed), len(noisy), len(alone)) == (285, 300, 95)
    assert noisy[:285] == mixed and not any("the correct answer is" in line for line in noisy[285:])
    assert all("Answer format" in line for line in alone)
    assert contender("slim").part == "mixed"


def test_a_work_folder_of_another_base_is_not_mixed_up(done, base, tmp_path):
    other = tmp_path / "base"
    shutil.copytree(base, other)
    model = LlamaForCausalLM.from_pretrained(other)
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)
    model.save_pretrained(other)
    plan = run(*TABLE2, "--base", other, "--work", done, "--dry-run")
    assert "4 trainings and 6 measurements are left" in plan.stderr
