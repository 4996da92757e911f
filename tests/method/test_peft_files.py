# SPDX-License-Identifier: Apache-2.0
"""Saving and loading with the real PEFT: what is in the files, that nothing is lost, and which base is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import (
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from peft.utils.hotswap import hotswap_adapter
from safetensors.torch import load_file

import slim_core
from slim_core import SlimConfig
from tests.conftest import TINY, build
from tests.method.small import logits, slim, tensors_of, train, trained, transformers_takes_peft


# Every kind of state at once.
EVERYTHING = {"yield_mode": "calibrated", "router_hidden": 4, "router_scope": "block"}
FACTORS = {"slim_A", "slim_B"}
TOKENS = {"slim_router", "slim_router_bias", "slim_center", "slim_var", "slim_count"}
PAPER = TOKENS | {"slim_token_mean", "slim_token_var"}
ROUTING = PAPER | {"slim_reference"}
MASKS = {"slim_columns", "slim_rows"}
# What a config adds, and the tensors it leads to.
VARIANTS = {
    "default": ({}, FACTORS | ROUTING | MASKS),
    "paper": ({"yield_mode": "paper"}, FACTORS | PAPER | MASKS),
    "token": ({"distance_scope": "token"}, FACTORS | TOKENS | MASKS | {"slim_reference"}),
    "paper, token": ({"yield_mode": "paper", "distance_scope": "token"}, FACTORS | TOKENS | MASKS),
    "turns": ({"turn_opening": [5, 7], "context_warmup": 2}, FACTORS | ROUTING | MASKS),
    "hidden": ({"router_hidden": 4}, FACTORS | ROUTING | MASKS | {"slim_router_down", "slim_router_up"}),
    "block": ({"router_scope": "block"}, FACTORS | ROUTING | MASKS),
    "unmasked": ({"merge": "none"}, FACTORS | ROUTING),
    "dare": ({"merge": "dare"}, FACTORS | ROUTING),
    "single": ({"num_experts": 1, "num_identity": 0, "top_k": 1}, FACTORS | MASKS),
}


# -- what is in the files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_and_buffer_is_in_the_safetensors_file(variant, tmp_path, ids):
    changes, kinds = VARIANTS[variant]
    model = trained(ids, **changes)
    model.save_pretrained(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    saved, tensors = load_file(tmp_path / "adapter_model.safetensors"), tensors_of(model)
    assert saved.keys() == tensors.keys()
    assert {key.rpartition(".")[2] for key in saved} == kinds
    for key, tensor in tensors.items():
        assert saved[key].dtype == tensor.dtype and torch.equal(saved[key], tensor), key


@pytest.mark.parametrize(("scope", "routers"), [("linear", 14), ("block", 8)])
def test_a_shared_router_is_saved_once(scope, routers, tmp_path, ids):
    # Of a block's seven Linears q, k and v share one, and gate and up.
    trained(ids, router_scope=scope).save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert sum(key.endswith(".slim_router") for key in saved) == routers
    assert sum(key.endswith(".slim_center") for key in saved) == routers
    assert sum(key.endswith(".slim_A") for key in saved) == 14


def test_the_file_holds_what_the_last_training_forward_saw(tmp_path, ids):
    # Sums of a forward wait for the next one; there is none between the last step and saving.
    model = trained(ids, target_modules=["q_proj"])
    model.save_pretrained(tmp_path)
    counts = [t.sum() for key, t in load_file(tmp_path / "adapter_model.safetensors").items() if "slim_count" in key]
    assert counts == [2 * ids.numel()] * 2


def test_only_the_named_adapter_is_in_its_file(tmp_path, ids):
    model = trained(ids)
    model.add_adapter("other", slim(r=4))
    model.save_pretrained(tmp_path)
    first, second = (load_file(tmp_path / f / "adapter_model.safetensors") for f in ("", "other"))
    for name, saved in (("default", first), ("other", second)):
        tensors = tensors_of(model, name)
        assert saved.keys() == tensors.keys() and all(torch.equal(saved[key], tensors[key]) for key in tensors)


def test_the_config_on_disk_names_format_and_base(tmp_path):
    get_peft_model(build("llama"), slim(target_modules=["q_proj", "down_proj"])).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["peft_type"] == "SLIM" and config["format_version"] == 4
    assert config["distance_scope"] == "context"
    assert config["base_fingerprint"] == {
        "model.layers.*.mlp.down_proj": "2 x (48 -> 32)",
        "model.layers.*.self_attn.q_proj": "2 x (32 -> 32)",
    }
    assert SlimConfig.from_pretrained(tmp_path).base_fingerprint == config["base_fingerprint"]


# -- loading -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_loaded_adapter_gives_bit_equal_logits(variant, tmp_path, ids):
    model = trained(ids, **VARIANTS[variant][0])
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(build("llama"), tmp_path)
    assert not loaded.training
    expected = logits(model, ids)
    assert not torch.allclose(expected, logits(build("llama"), ids))
    assert torch.equal(logits(loaded, ids), expected)


@pytest.mark.parametrize("family", TINY)
@pytest.mark.parametrize(
    "options",
    [{}, {"adapter_name": "another"}, {"low_cpu_mem_usage": True}, {"is_trainable": True}],
    ids=["plain", "other-name", "low-memory", "trainable"],
)
def test_every_way_of_loading_gives_bit_equal_logits(family, options, tmp_path, ids):
    model = trained(ids, family, **EVERYTHING)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(build(family), tmp_path, **options)
    name = options.get("adapter_name", "default")
    expected, actual = tensors_of(model), tensors_of(loaded, name)
    assert actual.keys() == expected.keys() and all(torch.equal(actual[key], expected[key]) for key in actual)
    assert torch.equal(logits(loaded, ids), logits(model, ids))
    trainable = {n for n, p in loaded.named_parameters() if p.requires_grad}
    everything = {n for n, _ in loaded.named_parameters() if ".slim_" in n}
    assert trainable == (everything if options.get("is_trainable") else set())


def test_a_loaded_adapter_trains_on_from_where_it_was(tmp_path, ids):
    model = trained(ids, **EVERYTHING)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(build("llama"), tmp_path, is_trainable=True)
    for twin in (model, loaded):
        torch.manual_seed(5)
        train(twin, ids)
    # The clusters were not started anew.
    assert torch.equal(logits(loaded, ids), logits(model, ids))


def test_clusters_start_anew_when_an_untrained_adapter_is_loaded_over_a_trained_one(ids):
    fresh = get_peft_model(build("llama"), slim())
    model = trained(ids)
    set_peft_model_state_dict(model, {k: v.clone() for k, v in get_peft_model_state_dict(fresh).items()})
    for twin in (model, fresh):
        torch.manual_seed(5)
        train(twin, ids)
    assert torch.equal(logits(model, ids), logits(fresh, ids))


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize("native", [False, True], ids=["peft", "transformers"])
def test_a_bfloat16_base_does_not_round_the_statistics(native, low_cpu_mem_usage, tmp_path, ids):
    model = trained(ids, base=build("llama").bfloat16(), **EVERYTHING)
    model.save_pretrained(tmp_path)
    base = build("llama").bfloat16()
    if native:
        base.load_adapter(str(tmp_path), low_cpu_mem_usage=low_cpu_mem_usage)
        actual = {f"base_model.model.{key}": tensor for key, tensor in tensors_of(base).items()}
    else:
        loaded = PeftModel.from_pretrained(base, tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
        actual = tensors_of(loaded)
        assert torch.equal(logits(loaded, ids), logits(model, ids))
    expected = tensors_of(model)
    assert actual.keys() == expected.keys()
    rounded = 0
    for key, tensor in expected.items():
        if key.endswith(("slim_center", "slim_var", "slim_token_mean", "slim_token_var", "slim_reference")):
            assert actual[key].dtype == torch.float32 and torch.equal(actual[key], tensor), key
            rounded += not torch.equal(tensor, tensor.bfloat16().float())
    assert rounded > 0  # rounding would have shown


@pytest.mark.parametrize("variant", VARIANTS)
def test_transformers_loads_an_adapter_by_itself(variant, tmp_path, ids):
    model = trained(ids, **VARIANTS[variant][0])
    model.save_pretrained(tmp_path)
    base = build("llama")
    base.load_adapter(str(tmp_path))
    assert torch.equal(logits(base, ids), logits(model, ids))


@transformers_takes_peft
def test_an_adapter_that_transformers_saved_loads_in_peft(tmp_path, ids):
    base = build("llama")
    base.add_adapter(slim(**EVERYTHING))
    train(base, ids)
    base.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(build("llama"), tmp_path), ids), logits(base, ids))


def test_the_state_dict_of_an_injected_adapter_is_that_of_a_peft_model(ids):
    expected = get_peft_model_state_dict(get_peft_model(build("llama"), slim(**EVERYTHING)))
    actual = get_peft_model_state_dict(inject_adapter_in_model(slim(**EVERYTHING), build("llama")))
    assert {f"base_model.model.{key}" for key in actual} == expected.keys()
    assert all(torch.equal(tensor, expected[f"base_model.model.{key}"]) for key, tensor in actual.items())


def test_a_second_adapter_can_be_loaded(tmp_path, ids):
    second = trained(ids, router_hidden=4)
    second.save_pretrained(tmp_path)
    model = trained(ids, num_experts=2)
    first = logits(model, ids)
    model.load_adapter(tmp_path, "second")
    assert torch.equal(logits(model, ids), first)
    model.set_adapter("second")
    assert torch.equal(logits(model, ids), logits(second, ids))


def test_modules_to_save_come_back(tmp_path, ids):
    model = trained(ids, modules_to_save=["lm_head"])
    model.save_pretrained(tmp_path)
    assert "base_model.model.lm_head.weight" in load_file(tmp_path / "adapter_model.safetensors")
    loaded = PeftModel.from_pretrained(build("llama"), tmp_path)
    assert torch.equal(logits(loaded, ids), logits(model, ids))


FRESH = """
import sys
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

base, adapter, data = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(base).eval()
try:
    PeftModel.from_pretrained(model, adapter)
except KeyError as error:
    print("without the import:", error)
import slim_core

saved = torch.load(data)
with torch.no_grad():
    logits = PeftModel.from_pretrained(model, adapter)(input_ids=saved["ids"]).logits
print("equal:", torch.equal(logits, saved["logits"]))
"""


def test_a_fresh_process_needs_only_the_import(tmp_path, ids):
    # Without the import PEFT does not know the method and says so with a bare KeyError, which is not ours to change.
    model = trained(ids, **EVERYTHING)
    build("llama").save_pretrained(tmp_path / "base")
    model.save_pretrained(tmp_path / "adapter")
    torch.save({"ids": ids, "logits": logits(model, ids)}, tmp_path / "data.pt")
    places = [str(tmp_path / name) for name in ("base", "adapter", "data.pt")]
    path = os.pathsep.join([str(Path(slim_core.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    threads = str(torch.get_num_threads())  # as here: another number adds up in another order
    done = subprocess.run(
        [sys.executable, "-c", FRESH, *places],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": threads},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.splitlines() == ["without the import: 'SLIM'", "equal: True"], done.stderr


@pytest.mark.parametrize("native", [False, True], ids=["peft", "transformers"])
def test_hot_swapping_is_refused_by_peft_itself(native, tmp_path, ids):
    get_peft_model(build("llama"), slim()).save_pretrained(tmp_path)
    if native:
        model = build("llama")
        model.load_adapter(str(tmp_path))
    else:
        model = PeftModel.from_pretrained(build("llama"), tmp_path)
    before = logits(model, ids)
    if native:
        with pytest.raises(ValueError, match="Hotswapping is currently only supported for LoRA"):
            model.load_adapter(str(tmp_path), adapter_name="default", hotswap=True)
    else:
        with pytest.raises(ValueError, match="Hotswapping only supports LORA but SLIM was passed"):
            hotswap_adapter(model, str(tmp_path), adapter_name="default", torch_device="cpu")
    assert torch.equal(logits(model, ids), before)
