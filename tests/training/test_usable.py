# SPDX-License-Identifier: Apache-2.0
"""What a run writes, the project itself checks and answers with; what it could not use is not trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from slim_core.adapters import OPERATOR, Folder, attach, describe_base, open_adapter
from slim_core.cli import app
from slim_core.training import TrainingError, train
from tests.training.conftest import settings


IDS = torch.arange(5, 29).view(2, 12)
HEAD = {"slim": {"num_clusters": 4, "modules_to_save": ["lm_head"]}}
# Method, settings, and endings of tensors that its file has beside those of Linears.
GOOD = {
    "DoRA": ("dora", {}, set()),
    "DoRA in 4 bits": ("dora", {"four_bit": True}, set()),
    "DoRA with its own head": ("dora", HEAD, {"lm_head.weight"}),
    "LoRA with its own head": ("lora", HEAD, {"lm_head.weight"}),
    "SLIM with its own head": ("slim", HEAD, {"lm_head.weight"}),
    "SLIM with its own embedding": (
        "slim",
        {"slim": {"num_clusters": 4, "modules_to_save": ["embed_tokens"]}},
        {"embed_tokens.weight"},
    ),
    "LoRA of the head": ("lora", {"target_modules": ["q_proj", "lm_head"]}, set()),
    "DoRA of the head": ("dora", {"target_modules": ["q_proj", "lm_head"]}, set()),
    "a head that is brought in whole and named as a target": (
        "lora",
        {"target_modules": ["q_proj", "lm_head"], **HEAD},
        {"lm_head.weight"},
    ),
    "SLIM with exact merging": ("slim", {"slim": {"num_clusters": 4, "merge": "dare"}}, set()),
    "one block": (
        "slim",
        {"target_modules": ["q_proj"], "slim": {"num_clusters": 4, "layers_to_transform": [0]}},
        set(),
    ),
}


@pytest.mark.parametrize("name", GOOD)
def test_what_is_trained_passes_every_check_and_is_the_row_that_peft_makes_of_it(name, base, pairs, tmp_path):
    method, changes, beside = GOOD[name]
    out = tmp_path / "out"
    train(settings(base, pairs, out, methods=[method], **changes))
    names = load_file(out / "adapter_model.safetensors").keys()
    own = {key for key in names if ".lora_" not in key and ".slim_" not in key}
    assert len(own) == len(beside) and all(any(key.endswith(ending) for ending in beside) for key in own)
    result = CliRunner().invoke(app, ["adapter", "check", str(out), "--base", str(base)])
    assert result.exit_code == 0 and "failed" not in result.output, result.output
    reference = PeftModel.from_pretrained(load(base), out).eval()
    model = load(base)
    model = attach(model, open_adapter(Folder(out), describe_base(model), limits=OPERATOR), "mine")
    with torch.no_grad():
        logits = model(input_ids=IDS, adapter_names=["mine", "__base__"]).logits
        torch.testing.assert_close(logits[0], reference(input_ids=IDS).logits[0], atol=1e-5, rtol=1e-5)
        assert torch.equal(logits[1], load(base)(input_ids=IDS).logits[1])


def load(base: Path):
    return AutoModelForCausalLM.from_pretrained(base).eval()


# Method, settings, and what the sentence says.
BAD = {
    "another module": (
        "slim",
        {"slim": {"modules_to_save": ["norm"]}},
        "`modules_to_save` names 'norm', but an adapter can replace",
    ),
    "no such module": (
        "lora",
        {"slim": {"modules_to_save": ["score"]}},
        "--slim modules_to_save names 'score', but .* has no such module; its Linears are down_proj, ",
    ),
    "an embedding": (
        "lora",
        {"target_modules": ["q_proj", "embed_tokens"]},
        "names `model.embed_tokens`, which is no",
    ),
    "rank": ("slim", {"r": 200, "num_experts": 8}, "experts of one Linear have rank 1,600 together; at most 1,024"),
    "rank of a LoRA": ("lora", {"r": 200, "num_experts": 8}, "`r` is 1600; it must be a whole number from 1 to 1024"),
    "alpha": ("slim", {"alpha": 1e6}, "`alpha` is 1000000.0; it must be a number above 0 and up to 4096"),
    "clusters": ("slim", {"slim": {"num_clusters": 5000}}, "`num_clusters` is 5000; .* from 0 to 1024"),
    "one of the targets": (
        "lora",
        {"target_modules": ["q_proj", "qproj"]},
        "--target names 'qproj', but .* no such mod",
    ),
    "nothing to exclude": (
        "slim",
        {"slim": {"exclude_modules": ["nope"]}},
        "--slim exclude_modules names 'nope', but",
    ),
    "no such target": ("lora", {"target_modules": ["c_attn"]}, "The lora adapter does not fit .*c_attn"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_could_not_be_used_is_refused_before_the_data_are_read(name, base, tmp_path):
    method, changes, sentence = BAD[name]
    asked = settings(base, tmp_path / "no-such.jsonl", tmp_path / "out", methods=[method], **changes)
    with pytest.raises(TrainingError, match=sentence) as caught:
        train(asked)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()
