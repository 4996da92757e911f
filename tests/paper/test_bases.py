# SPDX-License-Identifier: Apache-2.0
"""Bases of other families, trained on the demo's world, with LoRA and SLIM on each."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from slim_core.paper import bases
from slim_core.paper.bases import FAMILIES, BaseShape, base_folder, is_trained, train_base
from slim_core.paper.runs import PaperError
from slim_core.paths import DEMO
from tests.paper.test_paper import run, short_answers  # noqa: F401 - a fixture


SHAPE = BaseShape(steps=3, batch=2, width=16, layers=2, heads=2, inner=24)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_base_of_each_family_learns(name, tmp_path):
    folder, said = base_folder(tmp_path, name, SHAPE), []
    train_base(folder, name, SHAPE, DEMO / "base", said.append)
    model = AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(0)
    fresh = FAMILIES[name].build(SHAPE, AutoTokenizer.from_pretrained(DEMO / "base"))
    assert is_trained(folder) and model.config.model_type == FAMILIES[name].model_type
    before, after = dict(fresh.named_parameters()), dict(model.named_parameters())
    changed = [key for key in before if not torch.equal(before[key], after[key])]
    # Blocks and embeddings alike.
    assert any("mlp" in key for key in changed) and any("embed" in key or "wte" in key for key in changed)
    names = {key.rsplit(".", 1)[-1] for key, _ in model.named_modules()}
    assert set(FAMILIES[name].targets) <= names
    train_base(folder, name, SHAPE, DEMO / "base", said.append)
    assert len(said) == 1  # it is there


def test_a_short_training_has_all_phases_of_the_demos():
    assert abs(BaseShape().training.steps - 2400) <= 2
    assert len(BaseShape(steps=3).training.phases) == 3
    assert all(phase.fall <= phase.steps for phase in BaseShape(steps=3).training.phases)


def test_the_table_of_all_and_one_file(tmp_path, monkeypatch):
    monkeypatch.setattr(bases.BaseShape.__init__, "__defaults__", (3, 2, 16, 2, 2, 24, 512))
    words = ["bases", "--only", "llama", "gpt2", "--seeds", 1, "--work", tmp_path]
    plan = run(*words, "--dry-run")
    assert "2 bases, of which 2 are to be trained; 2 cells on each." in plan.stderr
    assert not (tmp_path / "bases").exists()
    nothing = run(*words, "--report")
    assert nothing.exit_code == 0 and nothing.stdout.count("not measured") == 2
    result = run(*words, "--markdown")
    assert result.exit_code == 0, result.output
    rows = [line for line in result.stdout.splitlines() if line.startswith(("| Llama", "| GPT-2"))]
    assert [row.split("|")[3].strip() for row in rows] == ["base", "LoRA", "SLIM"] * 2
    saved = json.loads((tmp_path / "bases-demo.json").read_text(encoding="utf-8"))
    assert list(saved["families"]) == ["llama", "gpt2"]
    columns = [v["name"] for v in saved["families"]["gpt2"]["parts"]["mixed"]["variants"]]
    assert columns == ["base", "lora@1", "slim@1"]
    assert (tmp_path / "bases-demo-gpt2.html").read_text(encoding="utf-8").count('role="img"') == 1
    written = (tmp_path / "bases-demo.json").read_bytes()
    again = run(*words)
    assert "of which 0 are to be trained" in again.stderr
    assert (tmp_path / "bases-demo.json").read_bytes() == written


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["bases", "--only", "bert"], "bases has no 'bert'; there are llama, qwen3, gemma3, gpt2."),
        (["bases", "--base", "x"], "`paper bases` trains its own bases; leave --base out."),
        (["bases", "--scale", "full"], "bases are trained on the demo's world"),
        (["table2", "--base-steps", "3"], "--base-steps is for the experiment `bases`"),
    ],
)
def test_what_cannot_be(words, sentence, tmp_path):
    result = run(*words, "--work", tmp_path, plan=False)
    assert result.exit_code == 1 and sentence in result.stderr, result.output


def test_unknown_families_are_named():
    with pytest.raises(PaperError, match="there are llama"):
        bases.chosen_families(["opt"])
    assert bases.chosen_families([]) == list(FAMILIES)
