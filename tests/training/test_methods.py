# SPDX-License-Identifier: Apache-2.0
"""Every method of the registry goes the whole way: trained by the command, checked, and a row of the engine."""

from __future__ import annotations

import json

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from slim_core.adapters import Folder, attach, describe_base, detach, open_adapter
from slim_core.baselines import METHODS
from slim_core.cli import app
from slim_core.peft_tools import adapter_rows


IDS = torch.arange(5, 29).view(2, 12)


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def load(base):
    return AutoModelForCausalLM.from_pretrained(base).eval()


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory):
    """The folder of each method, trained for three steps."""
    from tests.training.conftest import PAIRS, write_jsonl

    root = tmp_path_factory.mktemp("methods")
    data = write_jsonl(root / "pairs.jsonl", [{"prompt": q, "completion": a} for q, a in PAIRS])
    small = ("--rank", 2, "--experts", 4, "--batch-size", 4, "--max-steps", 3, "--learning-rate", 0.01)
    options = ("--slim", "num_clusters=4", "--option", "oft.oft_block_size=8", "--validation-share", 0)
    methods = [word for name in METHODS for word in ("--method", name)]
    result = run("train", "--base", base, "--data", data, "--output", root / "out", *methods, *small, *options)
    assert result.exit_code == 0, result.output
    return root / "out"


@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_what_is_trained_is_checked_and_answers_as_in_peft(method, base, trained):
    folder = trained / method
    for flags in ((), ("--base", base)):
        result = run("adapter", "check", folder, *flags)
        assert result.exit_code == 0 and "failed" not in result.output, result.output
    reference = PeftModel.from_pretrained(load(base), folder).eval()
    expected, plain = reference(input_ids=IDS).logits, load(base)(input_ids=IDS).logits
    assert not torch.equal(expected, plain), "three steps change something"
    model = load(base)
    adapter = open_adapter(Folder(folder), describe_base(model))
    try:
        carrying = attach(model, adapter, "row").eval()
        assert adapter.kind == METHODS[method].peft_type.lower()
        with adapter_rows(carrying, ["row", "__base__"]):
            actual = carrying(input_ids=IDS).logits
    finally:
        adapter.delete()
    assert torch.allclose(actual[0], expected[0], atol=1e-5) and torch.equal(actual[1], plain[1])
    assert torch.equal(detach(carrying, "row")(input_ids=IDS).logits, plain)


def test_all_of_them_are_columns_of_one_comparison(base, trained):
    flags = [word for method in METHODS for word in ("--adapter", trained / method)]
    result = run("compare", "2 + 3?", "--base", base, *flags, "--max-new-tokens", 2, "--json")
    assert result.exit_code == 0, result.output
    answers = json.loads(result.stdout)["answers"]
    assert len(answers) == 1 + len(METHODS) and all(a["error"] is None and a["tokens"] for a in answers)


def test_the_card_and_the_config_say_which_method_it_is(trained):
    for name, method in METHODS.items():
        card = (trained / name / "README.md").read_text("utf-8")
        assert f"fine-tuned with {method.title}" in card
        assert ("import slim_core" in card) == (method.tuner is not None)
        config = json.loads((trained / name / "adapter_config.json").read_text("utf-8"))
        assert config["peft_type"] == method.peft_type


def test_a_rewound_lora_is_the_lora_with_half_its_factor(trained):
    config = {n: json.loads((trained / n / "adapter_config.json").read_text()) for n in ("lora", "lora-rewound")}
    assert config["lora-rewound"]["lora_alpha"] == config["lora"]["lora_alpha"] / 2
