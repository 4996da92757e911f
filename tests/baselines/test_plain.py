# SPDX-License-Identifier: Apache-2.0
"""What is done to PEFT's own LoRAs, and where they sit."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora.intruders import reduce_intruder_dimension

from slim_core.baselines import METHODS
from slim_core.baselines.places import mlp_linears
from tests.baselines.small import IDS, configured, linears, small_base, stirred
from tests.conftest import build


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS).logits


def finished(name, **options):
    model = stirred(name)
    METHODS[name].finish(model, options)
    return model


@torch.no_grad()
def test_rewinding_multiplies_what_the_lora_adds_in_the_model_and_in_its_file(tmp_path):
    model, whole = finished("lora-rewound", scale=0.25), stirred("lora-rewound")
    place = "base_model.model.model.layers.1.mlp.up_proj"
    rewound, unscaled = (each.get_submodule(place).get_delta_weight("default") for each in (model, whole))
    assert torch.allclose(rewound, unscaled / 4, rtol=1e-5)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(small_base(), tmp_path).eval()
    assert torch.equal(logits(loaded), logits(model)) and not torch.equal(logits(model), logits(whole))


def test_intruders_are_taken_out_as_peft_does_it_and_one_adapter_is_left():
    # A base whose directions a random LoRA surely lacks.
    model, reference = finished("lora-intruders", top_k=4, threshold=0.9, share=0.5), stirred("lora-intruders")
    before = logits(reference)
    reduce_intruder_dimension(reference, top_k=4, threshold_epsilon=0.9, mitigation_lambda=0.5, logging_sink=None)
    assert torch.equal(logits(model), logits(reference.eval()))
    assert not torch.allclose(logits(model), before, atol=1e-3)
    kept = logits(finished("lora-intruders", top_k=4, threshold=0.9, share=1.0))
    assert torch.allclose(kept, before, atol=1e-4), "a share of 1 keeps all of it"
    assert [*model.peft_config] == ["default"] == model.active_adapters
    assert not [name for name, _ in model.named_parameters() if "without-intruders" in name]


MLPS = {
    "llama": {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"},
    "gpt2": {"mlp.c_fc", "mlp.c_proj"},
    "gemma3": {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"},
}


@pytest.mark.parametrize("family", MLPS)
def test_the_linears_of_mlps_are_found_by_their_names(family):
    assert mlp_linears(name for name, _ in build(family).named_modules() if name.count(".") > 2) >= MLPS[family]


def test_lora_on_the_mlps_leaves_attention_alone():
    adapted = [name for name, p in stirred("lora-mlp").named_parameters() if p.requires_grad]
    assert adapted and all(".mlp." in name for name in adapted)


def test_all_get_the_same_total_rank_and_factor():
    """Of 4 experts of rank 2, with alpha twice the rank."""
    for name in ("lora", "dora", "lora-mlp", "lora-rewound"):
        config = configured(name)
        assert (config.r, config.lora_alpha / config.r) == (8, 2)
    disel, mola, mixlora, loramoe = map(configured, ("disel", "mola", "mixlora", "loramoe"))
    assert (disel.r, disel.alpha / disel.r) == (8, 2)
    # On average over the blocks, to the next whole number.
    assert mola.r == round(8 / (sum(mola.num_experts) / 4)) and mola.alpha / mola.r == 2
    assert {(c.r, c.num_experts, c.alpha / c.r) for c in (mixlora, loramoe)} == {(2, 4, 2)}


BAD = {
    "no gated MLP": ("mixlora", "gpt2", {}, "MixLoRA needs gated MLPs"),
    "more numbers than blocks": (
        "mola",
        "llama",
        {"num_experts": [2, 2, 2, 2, 2]},
        "`num_experts` lists 5 numbers, but",
    ),
    "no masks": ("mixlora-dy", "llama", {"mask_rate": 0}, "MixLoRA-Dy with `mask_rate` 0 is MixLoRA"),
    "a scale of nothing": ("lora-rewound", "llama", {"scale": 0}, "`scale` must be above 0"),
    "no direction": ("lora-intruders", "llama", {"top_k": 0}, "`top_k` must be 1 or more"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_is_a_sentence(name):
    from peft import get_peft_model

    method, family, options, words = BAD[name]
    base = build(family)
    with pytest.raises(ValueError, match=words):
        get_peft_model(base, configured(method, base, **options))
    assert linears(base) or family == "gpt2"
