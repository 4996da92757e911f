# SPDX-License-Identifier: Apache-2.0
"""Which base model and which format a saved adapter accepts, and that a refusal changes nothing."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from slim_core import SlimConfig
from slim_core.method import SlimLayer, SlimModel
from tests.conftest import build, tiny_llama
from tests.method.small import assert_untouched, logits, slim, tensors_of, trained


LOADERS = {
    "peft": lambda base, folder: PeftModel.from_pretrained(base, folder),
    "transformers": lambda base, folder: base.load_adapter(str(folder)),
}


def with_a_linear_more() -> nn.Module:
    base = build("llama")
    base.model.extra = nn.Linear(8, 8)
    return base


@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.parametrize(
    ("targets", "other", "sentence"),
    [
        (["q_proj"], lambda: tiny_llama(hidden_size=64), r"q_proj`, 2 x \(32 -> 32\); this base model has 2 x \(64"),
        ("all-linear", lambda: tiny_llama(intermediate_size=64), r"2 x \(48 -> 32\); this base model has 2 x \(64"),
        (["q_proj"], lambda: tiny_llama(num_hidden_layers=3), r"2 x \(32 -> 32\); this base model has 3 x \(32 -> 32"),
        ("all-linear", lambda: tiny_llama(num_hidden_layers=3), r"2 x \(.*\); this base model has 3 x"),
        ("all-linear", lambda: tiny_llama(num_hidden_layers=1), r"2 x \(.*\); this base model has 1 x"),
        (["q_proj"], lambda: build("gpt2"), r"`model\.layers\.\*\.self_attn\.q_proj`.*no such Linear"),
        ("all-linear", lambda: build("gpt2"), r"`model\.layers\.\*\.mlp\.down_proj`.*no such Linear"),
        (r".*\.(q_proj|extra)", with_a_linear_more, r"has `model\.extra`, 1 x \(8 -> 8\).*was not made for"),
    ],
    ids=["width", "width-all", "more-blocks", "more-blocks-all", "fewer-blocks-all", "names", "names-all", "extra"],
)
def test_another_base_is_refused_before_anything_is_replaced(load, targets, other, sentence, tmp_path, ids):
    get_peft_model(build("llama"), slim(target_modules=targets)).save_pretrained(tmp_path)
    base = other()
    before = logits(base, ids)
    with pytest.raises(ValueError, match=f"does not fit the base model.*{sentence}"):
        LOADERS[load](base, tmp_path)
    assert_untouched(base, before, ids)


def test_a_refused_second_adapter_leaves_the_first_as_it_was(tmp_path, ids):
    get_peft_model(tiny_llama(hidden_size=64), slim()).save_pretrained(tmp_path)
    model = trained(ids)
    before = logits(model, ids)
    with pytest.raises(ValueError, match="does not fit the base model"):
        model.load_adapter(tmp_path, "second")
    assert list(model.peft_config) == ["default"] and not tensors_of(model, "second")
    assert torch.equal(logits(model, ids), before)


@pytest.mark.parametrize("load", LOADERS)
def test_a_newer_format_is_refused_with_a_sentence(load, tmp_path, ids):
    get_peft_model(build("llama"), slim()).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 5}))
    base = build("llama")
    before = logits(base, ids)
    with pytest.raises(ValueError, match=r"saved in format 5; .* reads formats up to 4\. Upgrade slim_core"):
        LOADERS[load](base, tmp_path)
    assert_untouched(base, before, ids)


@pytest.mark.parametrize("targets", [["q_proj"], "all-linear", None], ids=["list", "all-linear", "unset"])
def test_a_fresh_config_can_be_used_on_several_bases(targets, tmp_path, ids):
    config = slim(target_modules=targets)
    bases = [build("llama"), tiny_llama(hidden_size=64).eval(), tiny_llama(num_hidden_layers=3).eval()]
    states = [{key: tensor.clone() for key, tensor in base.state_dict().items()} for base in bases]
    models = [get_peft_model(base, config) for base in bases]
    per_block = 1 if targets == ["q_proj"] else 7
    assert [sum(isinstance(m, SlimLayer) for m in model.modules()) for model in models] == [
        per_block * blocks for blocks in (2, 2, 3)
    ]
    # Each file names the base that its own adapter was made for.
    for i, (model, sizes) in enumerate(zip(models, ({}, {"hidden_size": 64}, {"num_hidden_layers": 3}), strict=True)):
        model.save_pretrained(tmp_path / str(i))
        again = tiny_llama(**sizes)
        again.load_state_dict(states[i])
        assert torch.equal(logits(PeftModel.from_pretrained(again, tmp_path / str(i)), ids), logits(model, ids))


@pytest.mark.parametrize("blocks", [2, 3])
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "up_proj"], r".*\.v_proj"])
def test_a_model_keeps_the_very_config_it_was_given(targets, blocks, tmp_path, ids):
    # With three blocks PEFT shortens the names of all Linears in the config.
    def base() -> nn.Module:
        torch.manual_seed(0)
        return tiny_llama(num_hidden_layers=blocks).eval()

    config = SlimConfig(target_modules=targets)
    model = get_peft_model(base(), config)
    assert model.peft_config["default"] is config
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base(), tmp_path, config=config)
    assert loaded.peft_config["default"] is config
    assert torch.equal(logits(loaded, ids), logits(model, ids))


def test_a_config_that_a_model_has_is_completed_anew_for_another_kind(tmp_path):
    config = SlimConfig(target_modules="all-linear")
    first = get_peft_model(build("llama"), config)
    expected = dict(config.base_fingerprint)
    other = get_peft_model(build("gpt2"), config)
    assert first.peft_config["default"] is config is not other.peft_config["default"]
    assert config.base_fingerprint == expected
    assert "transformer.h.*.mlp.c_fc" in other.peft_config["default"].base_fingerprint
    for model, family in ((first, "llama"), (other, "gpt2")):
        model.save_pretrained(tmp_path / family)
        PeftModel.from_pretrained(build(family), tmp_path / family)


def test_something_else_by_the_name_of_a_target_is_none_of_the_bases_linears(tmp_path, ids):
    """As in a base whose blocks are of several kinds."""

    def base() -> nn.Module:
        made = build("llama")
        made.model.layers[1].self_attn.q_proj = nn.Identity()
        return made

    model = get_peft_model(base(), slim(target_modules=["q_proj"], layers_to_transform=[0]))
    assert model.peft_config["default"].base_fingerprint == {"model.layers.*.self_attn.q_proj": "1 x (32 -> 32)"}
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(base(), tmp_path), ids), logits(model, ids))


def test_the_config_of_another_method_is_refused(ids):
    base = build("llama")
    before = logits(base, ids)
    with pytest.raises(TypeError, match=r"^SlimModel takes a SlimConfig, not a LoraConfig\.$"):
        SlimModel(base, LoraConfig(target_modules=["q_proj"]), "default")
    assert_untouched(base, before, ids)
