# SPDX-License-Identifier: Apache-2.0
"""The configuration: every field has a help text, and every wrong value a sentence."""

import dataclasses
import json

import pytest
from peft import PeftConfig

from slim_core import SlimConfig


OWN_FIELDS = [
    f for f in dataclasses.fields(SlimConfig) if f.name not in {b.name for b in dataclasses.fields(PeftConfig)}
]


@pytest.mark.parametrize("field", OWN_FIELDS, ids=lambda f: f.name)
def test_every_field_has_a_help_text_and_is_documented(field):
    assert len(field.metadata["help"]) > 10
    assert f"    {field.name} (`" in SlimConfig.__doc__


def test_defaults_are_the_papers():
    config = SlimConfig()
    assert (config.r, config.num_experts, config.num_identity, config.top_k) == (16, 8, 2, 2)
    assert config.merge == "fast"


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"r": 0}, "`r` must be 1 or more, not 0."),
        ({"r": 2.5}, "`r` must be a whole number, not 2.5."),
        ({"r": True}, "`r` must be a whole number, not True."),
        ({"num_experts": 0}, "`num_experts` must be 1 or more"),
        ({"num_identity": -1}, "`num_identity` must be 0 or more"),
        ({"num_clusters": 0}, "`num_clusters` must be 1 or more"),
        ({"top_k": 0}, "`top_k` must be 1 or more"),
        ({"top_k": 11}, "`top_k` is 11, but there are only 10 experts"),
        ({"router_hidden": -1}, "`router_hidden` must be 0 or more"),
        ({"alpha": 0}, "`alpha` must be above 0"),
        ({"alpha": float("nan")}, "`alpha` must be a finite number"),
        ({"alpha": "32"}, "`alpha` must be a finite number, not '32'."),
        ({"dropout": 1.0}, "`dropout` must be 0 or more and below 1"),
        ({"cluster_momentum": 1.0}, "`cluster_momentum` must be 0 or more and below 1"),
        ({"yield_strength": -0.1}, "`yield_strength` must be 0 or more"),
        ({"yield_strength": 1e39}, "`yield_strength` must be 0 or more and below 1e\\+38, not 1e\\+39"),
        ({"yield_quantile": 0.0}, "`yield_quantile` must be above 0 and below 1"),
        ({"mask_rate": 1.0}, "`mask_rate` must be 0 or more and below 1"),
        ({"mask_rate": float("inf")}, "`mask_rate` must be a finite number"),
        ({"mask_seed": -1}, "`mask_seed` must be 0 or more"),
        ({"mask_seed": 2**31}, "`mask_seed` must be below 2\\*\\*31"),
        ({"l1_coefficient": -1.0}, "`l1_coefficient` must be 0 or more"),
        ({"balance_coefficient": -1.0}, "`balance_coefficient` must be 0 or more"),
        ({"merge": "slow"}, "`merge` must be one of 'fast', 'dare', 'none', not 'slow'."),
        ({"cluster_init": "kmeans"}, "`cluster_init` must be one of"),
        ({"distance": "l2"}, "`distance` must be one of"),
        ({"yield_mode": "off"}, "`yield_mode` must be one of"),
        ({"router_scope": "model"}, "`router_scope` must be one of"),
        ({"rank_pattern": {"q_proj": 0}}, r"`rank_pattern\['q_proj'\]` must be 1 or more"),
        ({"alpha_pattern": {"q_proj": -2.0}}, r"`alpha_pattern\['q_proj'\]` must be above 0"),
        ({"target_modules": "all-linear", "layers_to_transform": [0]}, "`layers_to_transform` needs"),
        ({"layers_to_transform": [0]}, "`layers_to_transform` needs `target_modules` as a list of names"),
        ({"layers_pattern": "h"}, "`layers_to_transform` must say which blocks"),
        ({"format_version": 5}, "saved in format 5; the installed slim_core reads formats up to 4"),
        ({"format_version": 1, "distance_scope": "context"}, "format 1 have no contexts"),
        ({"format_version": 2, "carry_up": True}, "formats 1 and 2 do not carry excesses up"),
        ({"carry_up": "yes"}, "`carry_up` must be one of True, False, not 'yes'"),
        ({"format_version": 3, "variance_floor": 0.1}, "formats 1 to 3 have no floor of the variance"),
        ({"variance_floor": -0.1}, "`variance_floor` must be 0 or more and below 1"),
        ({"variance_floor": "much"}, "`variance_floor` must be a finite number"),
        ({"distance_scope": "turn"}, "`distance_scope` must be one of 'context', 'token', not 'turn'."),
        ({"context_warmup": -1}, "`context_warmup` must be 0 or more"),
        ({"context_warmup": 1.5}, "`context_warmup` must be a whole number"),
        ({"turn_opening": []}, "`turn_opening` must be a list of 1 to 32 token ids"),
        ({"turn_opening": [1] * 33}, "`turn_opening` must be a list of 1 to 32 token ids"),
        ({"turn_opening": "<user>"}, "`turn_opening` must be a list of 1 to 32 token ids"),
        ({"turn_opening": [4, -1]}, "`turn_opening` must be 0 or more"),
        ({"turn_opening": [2**31]}, r"`turn_opening` must hold ids below 2\*\*31, not 2147483648"),
        ({"turn_opening": [10**5000]}, r"`turn_opening` must hold ids below 2\*\*31, not one of more than 40 digits"),
        ({"turn_opening": [4, "5"]}, "`turn_opening` must be a whole number"),
        ({"format_version": 0}, "`format_version` must be 1 or more"),
        ({"format_version": "1"}, "`format_version` must be a whole number, not '1'."),
        ({"base_fingerprint": "x"}, "`base_fingerprint` must be a table"),
        ({"use_rslora": "yes"}, "`use_rslora` must be one of True, False, not 'yes'."),
        ({"init_weights": "gaussian"}, "`init_weights` must be one of True, False"),
        ({"dropout": 10**400}, "`dropout` must be a finite number, not one of more than 40 digits."),
        ({"balance_coefficient": -(10**5000)}, "`balance_coefficient` must be a finite number, not one of more than"),
        ({"mask_seed": 10**5000}, "`mask_seed` must be below .*, not one of more than 40 digits."),
        ({"top_k": 10**5000}, "`top_k` is one of more than 40 digits, but there are only 10 experts"),
        ({"distance": "x" * 10**5}, "must be one of 'max', 'rms', not 'x{57}…'."),
    ],
    ids=lambda value: None if isinstance(value, str) else "-".join(value),
)
def test_a_wrong_value_is_a_sentence(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        SlimConfig(**wrong)


def test_a_saved_config_is_plain_json_and_loads_equal(tmp_path):
    config = SlimConfig(r=3, target_modules=["q_proj"], rank_pattern={"v_proj": 2}, yield_mode="calibrated")
    config.save_pretrained(str(tmp_path))
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "SLIM"
    loaded = PeftConfig.from_pretrained(str(tmp_path))
    assert isinstance(loaded, SlimConfig)
    # Saving marks a config for inference.
    assert dataclasses.replace(loaded, inference_mode=False) == config


@pytest.mark.parametrize(("rslora", "factor"), [(False, 2.0), (True, 8.0)])
def test_scaling_follows_lora(rslora, factor):
    assert SlimConfig(use_rslora=rslora).scaling(16, 32.0) == factor


def test_a_router_that_cannot_learn_is_warned_of():
    with pytest.warns(UserWarning, match="the router gets no gradient"):
        SlimConfig(top_k=1)


@pytest.mark.parametrize(
    ("version", "scope", "carry_up", "floor"),
    [(1, "token", False, 0.0), (2, "context", False, 0.0), (3, "context", True, 0.0), (4, "context", True, 0.1)],
)
def test_what_is_not_set_is_as_in_the_format(version, scope, carry_up, floor):
    config = SlimConfig(format_version=version)
    assert (config.distance_scope, config.carry_up, config.variance_floor) == (scope, carry_up, floor)
    assert SlimConfig(format_version=version, distance_scope="token").distance_scope == "token"


def test_an_adapter_without_gate_settings_in_its_file_is_of_the_format_it_says(tmp_path):
    SlimConfig(target_modules=["q_proj"]).save_pretrained(str(tmp_path))
    path = tmp_path / "adapter_config.json"
    raw = json.loads(path.read_text()) | {"format_version": 1, "yield_mode": "calibrated"}
    for field in ("distance_scope", "context_warmup", "turn_opening", "carry_up", "variance_floor"):
        del raw[field]
    path.write_text(json.dumps(raw))
    loaded = PeftConfig.from_pretrained(str(tmp_path))
    assert (loaded.distance_scope, loaded.yield_mode, loaded.turn_opening) == ("token", "calibrated", None)


def test_a_turn_opening_is_kept_as_a_list():
    assert SlimConfig(turn_opening=(4, 5)).turn_opening == [4, 5]


def test_patterns_may_be_missing():
    assert SlimConfig(rank_pattern=None, alpha_pattern=None).rank_pattern == {}


def test_one_lora_expert_alone_is_not_routed():
    assert not SlimConfig(num_experts=1, num_identity=0, top_k=1).routed
    assert SlimConfig(num_experts=1, num_identity=1, top_k=1).routed
