# SPDX-License-Identifier: Apache-2.0
"""Adapters of format 1, which knew the distance of a token alone, go on answering as they did."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from slim_core import SlimConfig, set_gate, trace_routing
from slim_core.method import AS_TRAINED, GateSetting
from slim_core.peft_tools import adapter_rows, fold_masks
from tests.conftest import build
from tests.method import reference
from tests.method.small import learned, logits, router_layer, slim_layers, train
from tests.method.test_properties import layers_with_inputs


NEW_FIELDS = ("distance_scope", "context_warmup", "turn_opening", "carry_up", "variance_floor")
MODES = {
    "calibrated": {"yield_mode": "calibrated"},
    "calibrated, max, block": {"yield_mode": "calibrated", "distance": "max", "router_scope": "block"},
    "paper": {"yield_mode": "paper", "distance": "max", "yield_strength": 1.0},
    "hidden": {"yield_mode": "calibrated", "router_hidden": 4},
}


def first_format(folder: Path, **changes) -> PeftModel:
    """An adapter whose files are those of format 1, loaded: one quantile, and none of the newer fields."""
    settings = {"distance_scope": "token", "yield_strength": 1.0, "merge": "none"}
    learned(**(settings | changes)).save_pretrained(folder)
    raw = json.loads((folder / "adapter_config.json").read_text())
    raw = {name: value for name, value in raw.items() if name not in NEW_FIELDS} | {"format_version": 1}
    (folder / "adapter_config.json").write_text(json.dumps(raw))
    saved = load_file(folder / "adapter_model.safetensors")
    tensors = {key: t[1, 0].clone() if key.endswith("slim_reference") else t for key, t in saved.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    return PeftModel.from_pretrained(build("llama"), folder)


@pytest.mark.parametrize("mode", MODES)
def test_every_layer_equals_the_slow_formulas_of_tokens(mode, tmp_path, ids):
    model = first_format(tmp_path, **MODES[mode])
    config = model.peft_config["default"]
    assert (config.format_version, config.distance_scope) == (1, "token")
    with trace_routing(model) as trace:
        seen = layers_with_inputs(model, input_ids=ids[:1])
    for layer, x, out in seen:
        owner = router_layer(layer, model)
        state = reference.layer_state(owner, "default") | reference.layer_state(layer, "default")
        assert "token_mean" not in state and state.get("reference", torch.zeros(())).dim() == 0
        with torch.no_grad():
            base = layer.base_layer(x)[0].double()
        expected = base + reference.slim_delta(x[0], state, config, layer.scaling["default"])
        torch.testing.assert_close(out[0].double(), expected, rtol=1e-4, atol=1e-4)
    assert (trace.row(0).gate == 1).all()
    assert 0 < trace.row(0).identity.mean() < 1


@pytest.mark.parametrize("mode", MODES)
def test_tokens_are_read_one_by_one_as_in_the_whole(mode, tmp_path, ids):
    model = first_format(tmp_path, **MODES[mode])
    expected = logits(model, ids)
    fold_masks(model, "default")
    base = model.get_base_model()
    with torch.no_grad(), adapter_rows(model, ["default", "__base__", "default"]):
        out = base(input_ids=ids[:, :6], use_cache=True)
        actual = [out.logits]
        for t in range(6, 12):
            actual.append(base(input_ids=ids[:, t : t + 1], past_key_values=out.past_key_values).logits)
    actual = torch.cat(actual, 1)
    torch.testing.assert_close(actual[[0, 2]], expected[[0, 2]], rtol=1e-4, atol=1e-4)
    plain = logits(build("llama"), ids)
    torch.testing.assert_close(actual[1], plain[1], rtol=1e-5, atol=1e-5)


def test_a_cache_of_the_base_is_good_enough_for_tokens(tmp_path, ids):
    # What was read before is nothing to the distance of a token.
    model = first_format(tmp_path)
    with torch.no_grad():
        cache = build("llama")(input_ids=ids[:, :6], use_cache=True).past_key_values
        assert model(input_ids=ids[:, 6:], past_key_values=cache).logits.isfinite().all()


def test_an_adapter_of_format_1_is_saved_as_one(tmp_path, ids):
    model = first_format(tmp_path / "first", **MODES["hidden"])
    model.save_pretrained(tmp_path / "again")
    saved, again = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("first", "again"))
    assert saved.keys() == again.keys() and all(torch.equal(saved[key], again[key]) for key in saved)
    config = SlimConfig.from_pretrained(tmp_path / "again")
    assert (config.format_version, config.distance_scope) == (1, "token")
    loaded = PeftModel.from_pretrained(build("llama"), tmp_path / "again")
    assert torch.equal(logits(loaded, ids), logits(model, ids))


def test_an_adapter_of_format_1_trains_on_with_its_one_quantile(tmp_path, ids):
    first_format(tmp_path)
    model = PeftModel.from_pretrained(build("llama"), tmp_path, is_trainable=True)
    before = {name: layer.slim_reference["default"].clone() for name, layer in slim_layers(model).items()}
    train(model, ids)
    model.state_dict()
    for name, layer in slim_layers(model).items():
        kept = layer.slim_reference["default"]
        assert kept.dim() == 0 and kept != before[name]


def test_formats_share_a_batch(tmp_path, ids):
    model = first_format(tmp_path)
    first = logits(model, ids)
    learned().save_pretrained(tmp_path / "second")
    model.load_adapter(tmp_path / "second", "second")
    model.set_adapter("second")
    second = logits(model, ids)
    with adapter_rows(model, ["default", "second", "__base__"]):
        mixed = logits(model.get_base_model(), ids)
    torch.testing.assert_close(mixed[0], first[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mixed[1], second[1], rtol=1e-4, atol=1e-4)
    assert torch.equal(mixed[2], logits(build("llama"), ids)[2])


def test_the_strength_of_format_1_can_be_set(tmp_path, ids):
    model = first_format(tmp_path)
    before = logits(model, ids)
    set_gate(model, strength=0.0)
    assert not torch.equal(logits(model, ids), before)
    set_gate(model, strength=1.0)
    assert torch.equal(logits(model, ids), before)


def test_format_1_has_one_quantile_alone(tmp_path, ids):
    model, sentence = first_format(tmp_path), "The quantile is 0.9; the adapter stores the distance of 0.6 alone"
    before = logits(model, ids)
    with pytest.raises(ValueError, match=sentence):
        set_gate(model, strength=0.0, quantile=0.9)
    assert torch.equal(logits(model, ids), before)
    with pytest.raises(ValueError, match=sentence), adapter_rows(model, ["default"], [GateSetting(quantile=0.9)]):
        pass
    with adapter_rows(model, ["default"] * 3, [GateSetting(quantile=0.6), GateSetting(0.0), AS_TRAINED]):
        rows = logits(model.get_base_model(), ids)
    torch.testing.assert_close(rows[[0, 2]], before[[0, 2]], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(rows[1], before[1], atol=1e-2)
