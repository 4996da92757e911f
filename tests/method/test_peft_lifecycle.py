# SPDX-License-Identifier: Apache-2.0
"""The life of an adapter with the real PEFT: attach, switch, delete, inject, copy, unload, and what is refused."""

from __future__ import annotations

import copy
import importlib

import pytest
import torch
from peft import get_layer_status, get_model_status, get_peft_model, inject_adapter_in_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

import slim_core.method
from slim_core import SlimConfig, SlimModel
from tests.conftest import TINY, build
from tests.method.small import hooked, logits, slim, slim_layers, train, transformers_takes_peft


LINEARS_OF_A_BLOCK = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
QV_REGEX = r".*\.(q_proj|v_proj)"


# -- attaching ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("targets", "linears"),
    [
        ("all-linear", LINEARS_OF_A_BLOCK),
        (None, LINEARS_OF_A_BLOCK),
        (["q_proj", "v_proj"], ["q_proj", "v_proj"]),
        (QV_REGEX, ["q_proj", "v_proj"]),
    ],
    ids=["all-linear", "unset", "list", "regex"],
)
def test_target_modules_name_the_adapted_linears(targets, linears, ids):
    base = build("llama")
    before = logits(base, ids)
    model = get_peft_model(base, slim(target_modules=targets, init_weights=True))
    # The output head is never among them.
    assert sorted(name.rpartition(".")[2] for name in slim_layers(model)) == sorted(linears * 2)
    assert torch.equal(logits(model, ids), before)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("trained", [False, True], ids=["random", "trained"])
def test_disabling_restores_the_base_bit_for_bit(family, trained, ids):
    base = build(family)
    before = logits(base, ids)
    model = get_peft_model(base, slim())
    if trained:
        train(model, ids)
    adapted = logits(model, ids)
    assert not torch.allclose(adapted, before)
    with model.disable_adapter():
        assert torch.equal(logits(model, ids), before)
    assert torch.equal(logits(model, ids), adapted)


def test_an_adapter_on_a_model_in_evaluation_mode_does_not_learn_from_its_first_forward(ids):
    model = get_peft_model(build("llama"), slim())
    with torch.no_grad():
        model(input_ids=ids)  # nobody called train() or eval()
    assert not any(layer.slim_center["default"].any() for layer in slim_layers(model).values())


def test_only_the_adapter_is_trainable():
    model = get_peft_model(build("llama"), slim(router_hidden=4))
    assert all(p.requires_grad == (".slim_" in name) for name, p in model.named_parameters())


def test_every_container_has_the_prefix_that_peft_looks_for():
    model = get_peft_model(build("llama"), slim(router_hidden=4, yield_mode="calibrated"))
    for layer in slim_layers(model).values():
        children = {name for name, _ in layer.named_children()} - {"base_layer"}
        assert children and all(name.startswith(SlimModel.prefix) for name in children)
        assert not list(layer.named_parameters(recurse=False)) + list(layer.named_buffers(recurse=False))


def test_the_method_is_registered_once_however_often_it_is_imported(ids):
    tables = (PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING)
    before = [dict(table) for table in tables]
    assert [table["SLIM"] for table in tables] == [SlimConfig, SlimModel, "slim_"]
    base = build("llama")
    expected = logits(base, ids)
    importlib.reload(slim_core.method)
    assert [dict(table) for table in tables] == before
    assert torch.equal(logits(get_peft_model(base, slim(init_weights=True)), ids), expected)


# -- what a config can say ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("excluded", [["q_proj", "down_proj"], r".*\.(q_proj|down_proj)"], ids=["list", "regex"])
@pytest.mark.parametrize("targets", ["all-linear", LINEARS_OF_A_BLOCK], ids=["all-linear", "list"])
def test_excluded_modules_are_left_alone(targets, excluded):
    model = get_peft_model(build("llama"), slim(target_modules=targets, exclude_modules=excluded))
    names = {name.rpartition(".")[2] for name in slim_layers(model)}
    assert names == set(LINEARS_OF_A_BLOCK) - {"q_proj", "down_proj"}


@pytest.mark.parametrize("layers", [1, [1]])
@pytest.mark.parametrize("pattern", [None, "layers", ["h", "layers"]])
def test_layers_to_transform_names_the_blocks(layers, pattern):
    config = slim(target_modules=["q_proj"], layers_to_transform=layers, layers_pattern=pattern)
    assert list(slim_layers(get_peft_model(build("llama"), config))) == ["model.layers.1.self_attn.q_proj"]


@pytest.mark.parametrize("targets", [None, "all-linear"])
def test_layers_to_transform_is_never_ignored_without_a_word(targets):
    # "all-linear" becomes a set of full names, which PEFT matches without looking at the blocks' indices.
    with pytest.raises(ValueError, match="`layers_to_transform` needs `target_modules` as a list"):
        get_peft_model(build("llama"), slim(target_modules=targets, layers_to_transform=[1]))


@pytest.mark.parametrize("use_rslora", [False, True], ids=["lora", "rslora"])
def test_rank_and_alpha_patterns_change_single_modules(use_rslora):
    model = get_peft_model(
        build("llama"),
        slim(
            target_modules=["q_proj", "v_proj"],
            alpha=8,
            mask_rate=0.0,
            use_rslora=use_rslora,
            rank_pattern={"v_proj": 4},
            alpha_pattern={r"layers\.1\.self_attn\.v_proj": 1.0},
        ),
    )
    shapes = {name: (m.slim_A["default"].shape, m.slim_B["default"].shape) for name, m in slim_layers(model).items()}
    attention = "model.layers.{}.self_attn.{}_proj".format
    experts = 3
    assert shapes == {
        attention(block, name): ((experts * r, 32), (c_out, experts * r))
        for block in (0, 1)
        for name, r, c_out in (("q", 2, 32), ("v", 4, 16))
    }
    divisor = {2: 2**0.5, 4: 2.0} if use_rslora else {2: 2, 4: 4}
    assert {name: m.scaling["default"] for name, m in slim_layers(model).items()} == {
        attention(0, "q"): 8 / divisor[2],
        attention(1, "q"): 8 / divisor[2],
        attention(0, "v"): 8 / divisor[4],
        attention(1, "v"): 1 / divisor[4],
    }


def test_modules_to_save_are_trained_as_a_copy(ids):
    base = build("llama")
    before, head = logits(base, ids), base.lm_head.weight.clone()
    model = get_peft_model(base, slim(modules_to_save=["lm_head"]))
    train(model, ids)
    wrapper = model.base_model.model.lm_head
    assert not torch.equal(wrapper.modules_to_save["default"].weight, head)
    assert torch.equal(wrapper.original_module.weight, head)
    with model.disable_adapter():
        assert torch.equal(logits(model, ids), before)


def test_a_module_saved_whole_by_one_adapter_is_not_adapted_by_the_next():
    # "all-linear" leaves the output head out, also when the head is wrapped by then.
    model = get_peft_model(build("llama"), slim(modules_to_save=["lm_head"]), "first")
    model.add_adapter("second", slim())
    assert [name for name in slim_layers(model) if "lm_head" in name] == []


@pytest.mark.parametrize("bad", ["embed_tokens", "norm"])
def test_an_unsupported_module_is_refused_before_anything_is_replaced(bad, ids):
    base = build("llama")
    before = logits(base, ids)
    kind = type(base.get_submodule(f"model.{bad}")).__name__
    with pytest.raises(TypeError, match=rf"`model\.{bad}` is a {kind}.*exclude_modules"):
        get_peft_model(base, slim(target_modules=["q_proj", bad]))
    assert not slim_layers(base) and not hooked(base)
    assert torch.equal(logits(base, ids), before)


# -- without a PeftModel -----------------------------------------------------------------------------------------


def test_injecting_gives_the_same_as_a_peft_model(ids):
    # `build` seeds the generator, so both adapters start from the same draws.
    expected = logits(get_peft_model(build("llama"), slim()), ids)
    base = build("llama")
    assert inject_adapter_in_model(slim(), base) is base
    assert len(slim_layers(base)) == 14 and torch.equal(logits(base, ids), expected)


@transformers_takes_peft
def test_transformers_own_adapter_methods_work(ids):
    base = build("llama")
    before = logits(base, ids)
    base.add_adapter(slim(), "first")
    first = logits(base, ids)
    base.add_adapter(slim(), "second")
    second = logits(base, ids)
    assert base.active_adapters() == ["second"]
    assert not torch.allclose(first, before) and not torch.allclose(second, first)
    base.disable_adapters()
    assert torch.equal(logits(base, ids), before)
    base.enable_adapters()
    assert torch.equal(logits(base, ids), second)
    base.set_adapter("first")
    assert torch.equal(logits(base, ids), first)
    base.delete_adapter("second")
    assert torch.equal(logits(base, ids), first) and list(base.peft_config) == ["first"]


@transformers_takes_peft
def test_an_adapter_deleted_by_transformers_leaves_no_loss_behind(ids):
    base = build("llama")
    base.add_adapter(slim(balance_coefficient=0.1), "first")
    base.add_adapter(slim(), "second")
    base.set_adapter("first")
    train(base, ids)
    base.delete_adapter("first")
    assert not any("first" in layer.context.losses.balance for layer in slim_layers(base).values())


@transformers_takes_peft
def test_injected_adapters_learn_from_the_models_own_forward(ids):
    base = build("llama")
    base.add_adapter(slim())
    train(base, ids)
    base(input_ids=ids)  # what the last forward saw is folded in before the next
    assert all(layer.slim_count["default"].sum() == 2 * ids.numel() for layer in slim_layers(base).values())


def test_status_reports_the_adapters():
    model = get_peft_model(build("llama"), slim(), "first")
    model.add_adapter("second", slim(target_modules=["q_proj"], inference_mode=True))
    status = get_model_status(model)
    assert (status.adapter_model_type, status.peft_types) == ("SlimModel", {"first": "SLIM", "second": "SLIM"})
    assert (status.num_adapter_layers, status.enabled, status.active_adapters) == (14, True, ["first"])
    assert status.merged_adapters == [] and status.requires_grad == {"first": True, "second": False}
    layers = {layer.name: layer for layer in get_layer_status(model)}
    q_proj = layers["model.model.layers.0.self_attn.q_proj"]
    assert q_proj.module_type == "slim.Linear" and q_proj.devices == {"first": ["cpu"], "second": ["cpu"]}
    assert q_proj.available_adapters == ["first", "second"]
    assert layers["model.model.layers.0.mlp.up_proj"].available_adapters == ["first"]


# -- leaving -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", TINY)
def test_unload_gives_back_the_base_model(family, ids):
    base = build(family)
    before, types, hooks = logits(base, ids), [type(m) for m in base.modules()], hooked(base)
    model = get_peft_model(base, slim())
    train(model, ids)
    unloaded = model.unload()
    assert [type(m) for m in unloaded.modules()] == types
    assert hooked(unloaded) == hooks == []
    assert torch.equal(logits(unloaded, ids), before)
    assert torch.equal(logits(get_peft_model(unloaded, slim(init_weights=True)), ids), before)


@pytest.mark.parametrize("rows", [[3, 5], {"lm_head": [3]}], ids=["own tokens", "own rows of the head"])
def test_unload_takes_trained_rows_of_tokens_along(rows, ids):
    base = build("llama")
    before, types = logits(base, ids), [type(m) for m in base.modules()]
    model = get_peft_model(base, slim(target_modules=["q_proj"], trainable_token_indices=rows))
    train(model, ids)
    unloaded = model.unload()
    assert [type(m) for m in unloaded.modules()] == types
    assert torch.equal(logits(unloaded, ids), before)


@pytest.mark.parametrize("scope", ["linear", "block"])
@pytest.mark.parametrize("balance", [0.0, 0.1], ids=["plain", "balance-loss"])
def test_a_deep_copy_is_independent(scope, balance, ids):
    model = get_peft_model(build("llama"), slim(router_scope=scope, balance_coefficient=balance))
    train(model, ids)
    twin = copy.deepcopy(model)
    expected = logits(model, ids)
    assert torch.equal(logits(twin, ids), expected)
    train(twin, ids)
    trained = logits(twin, ids)
    assert not torch.allclose(trained, expected) and torch.equal(logits(model, ids), expected)
    train(model, ids)
    assert torch.equal(logits(twin, ids), trained)
    assert hooked(twin.unload()) == [] and hooked(model) != []


@pytest.mark.parametrize(
    "merge",
    [
        lambda model: model.merge_and_unload(),
        lambda model: model.merge_adapter(),
        lambda model: model.unmerge_adapter(),
        lambda model: next(iter(slim_layers(model).values())).merge(),
        lambda model: next(iter(slim_layers(model).values())).unmerge(),
    ],
    ids=["merge_and_unload", "merge_adapter", "unmerge_adapter", "layer-merge", "layer-unmerge"],
)
def test_merging_is_refused_and_the_model_still_works(merge, ids):
    # The embedding comes before the first Linear: unloading must not have begun when merging turns out impossible.
    model = get_peft_model(build("llama"), slim(modules_to_save=["embed_tokens"]))
    before, types = logits(model, ids), [type(m) for m in model.modules()]
    with pytest.raises(NotImplementedError, match=r"cannot be merged.*`slim_core\.export_lora`"):
        merge(model)
    assert [type(m) for m in model.modules()] == types
    assert torch.equal(logits(model, ids), before)


@pytest.mark.parametrize("name", ["a.b", "keys", "forward", "training", "_buffers", "", "__base__"])
def test_a_name_that_torch_cannot_hold_is_refused_before_anything_changes(name, ids):
    model = get_peft_model(build("llama"), slim())
    before = logits(model, ids)
    with pytest.raises(ValueError, match="An adapter cannot be named"):
        model.add_adapter(name, slim())
    assert list(model.peft_config) == ["default"] and torch.equal(logits(model, ids), before)
    assert not any(name in layer.slim_config for layer in slim_layers(model).values())


def test_adapters_cannot_be_combined_into_one():
    model = get_peft_model(build("llama"), slim())
    with pytest.raises(NotImplementedError, match="each has a router of its own"):
        model.add_weighted_adapter(["default"], [1.0], "both")
