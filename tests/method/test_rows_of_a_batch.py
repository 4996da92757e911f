# SPDX-License-Identifier: Apache-2.0
"""`adapter_names`: each row of a batch is another adapter, or the base; plain forwards, generation, and mistakes."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import GenerationConfig

from slim_core import SlimConfig
from tests.conftest import TINY, build


BASE = "__base__"
# Three kinds: the paper's, one with all options, and the one that a plain LoRA becomes.
KINDS = {
    "paper": {"num_experts": 3, "num_identity": 1},
    "shared": {"num_experts": 2, "router_scope": "block", "router_hidden": 4, "yield_mode": "calibrated"},
    "lora": {"num_experts": 1, "num_identity": 0, "top_k": 1, "merge": "none"},
}
NAMES = (*KINDS, BASE)


def three_adapters(family: str = "llama", **changes) -> PeftModel:
    model = None
    for name, kind in KINDS.items():
        config = SlimConfig(**{"r": 2, "alpha": 8, "num_clusters": 4, "init_weights": False, **kind, **changes})
        if model is None:
            model = get_peft_model(build(family), config, name)
        else:
            model.add_adapter(name, config)
    for name, parameter in model.named_parameters():
        if ".slim_B." in name:  # far enough from the base to tell the rows apart
            parameter.data.mul_(5)
    return model.eval()


def alone(model: PeftModel, name: str, call):
    """`call()` with one adapter, or none, for the whole batch."""
    if name == BASE:
        with model.disable_adapter():
            return call()
    active = model.active_adapter
    model.set_adapter(name)
    result = call()
    model.set_adapter(active)
    return result


@torch.no_grad()
def logits(model: PeftModel, ids: torch.Tensor, **kwargs) -> torch.Tensor:
    return model(input_ids=ids, **kwargs).logits


def assert_rows_equal_single_runs(model: PeftModel, ids: torch.Tensor, names: list[str]) -> None:
    expected = {name: alone(model, name, lambda: logits(model, ids)) for name in dict.fromkeys((*names, BASE))}
    mixed = logits(model, ids, adapter_names=names)
    for row, name in enumerate(names):
        torch.testing.assert_close(mixed[row], expected[name][row], atol=2e-5, rtol=0)
        if name != BASE:
            assert (mixed[row] - expected[BASE][row]).abs().max() > 1e-2


# -- one forward -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", TINY)
def test_each_row_gets_its_own_adapter_in_every_family(family, ids):
    assert_rows_equal_single_runs(three_adapters(family), ids, ["paper", BASE, "lora"])


@pytest.mark.parametrize(
    "names",
    [
        ["paper", "shared", "lora", BASE],
        [BASE, "paper", BASE, "paper"],
        ["shared", "lora", "shared", "shared"],
        ["paper", "paper", "shared", "shared"],
        ["lora"] * 4,
        [BASE] * 4,
    ],
    ids="-".join,
)
def test_rows_can_come_in_any_order(names, ids):
    assert_rows_equal_single_runs(three_adapters(), torch.cat([ids, ids.flip(1)[:1]]), names)


def test_rows_of_the_base_are_bit_equal_to_it(ids):
    model = three_adapters()
    expected = alone(model, BASE, lambda: logits(model, ids))
    mixed = logits(model, ids, adapter_names=["paper", BASE, "shared"])
    assert torch.equal(mixed[1], expected[1])


def test_the_active_adapter_does_not_matter(ids):
    model = three_adapters()
    names = ["paper", BASE, "shared"]
    expected = logits(model, ids, adapter_names=names)
    model.set_adapter("lora")
    assert torch.equal(logits(model, ids, adapter_names=names), expected)
    assert model.active_adapter == "lora"


@pytest.mark.parametrize("way", ["positional", "embeddings"])
def test_rows_work_however_the_batch_is_given(way, ids):
    model, names = three_adapters(), ["paper", BASE, "lora"]
    expected = logits(model, ids, adapter_names=names)
    with torch.no_grad():
        if way == "positional":
            actual = model(ids, adapter_names=names).logits
        else:
            actual = model(inputs_embeds=model.get_input_embeddings()(ids), adapter_names=names).logits
    assert torch.equal(actual, expected)


def test_padding_of_one_row_does_not_touch_another(ids):
    model, names = three_adapters(), ["paper", "shared", "lora"]
    mask = torch.ones_like(ids)
    mask[1, 8:] = 0
    full, padded = (
        logits(model, ids, adapter_names=names),
        logits(model, ids, adapter_names=names, attention_mask=mask),
    )
    torch.testing.assert_close(padded[[0, 2]], full[[0, 2]], atol=2e-5, rtol=0)
    torch.testing.assert_close(padded[1, :8], full[1, :8], atol=2e-5, rtol=0)


@pytest.mark.parametrize("active", ["paper", "lora"])
@pytest.mark.parametrize("names", [["paper", BASE, "paper"], ["paper", BASE, "lora"]], ids="-".join)
def test_modules_saved_whole_follow_the_rows(names, active, ids):
    # Only "paper" has its own head. Rows of the other adapter use the base's, whichever adapter is active.
    linears = {"target_modules": ["q_proj", "down_proj"]}
    model = get_peft_model(
        build("llama"), SlimConfig(r=2, init_weights=False, modules_to_save=["lm_head"], **linears), "paper"
    )
    model.add_adapter("lora", SlimConfig(r=2, init_weights=False, **KINDS["lora"], **linears))
    torch.nn.init.normal_(model.base_model.model.lm_head.modules_to_save["paper"].weight)
    model.eval().set_adapter(active)
    assert_rows_equal_single_runs(model, ids, names)


# -- generation --------------------------------------------------------------------------------------------------


def generate(model: PeftModel, ids: torch.Tensor, **kwargs) -> torch.Tensor:
    return model.generate(input_ids=ids, max_new_tokens=5, min_new_tokens=5, pad_token_id=0, **kwargs)


def assert_generation_equals_single_runs(model: PeftModel, ids: torch.Tensor, **kwargs) -> None:
    names = ["paper", BASE, "shared"]
    mixed = generate(model, ids, adapter_names=names, **kwargs).unflatten(0, (len(names), -1))
    single = [
        alone(model, name, lambda: generate(model, ids, **kwargs)).unflatten(0, (len(names), -1)) for name in names
    ]
    # The base and the adapters say different things, so swapped rows would show.
    assert not torch.equal(single[0], single[1]) and not torch.equal(single[2], single[1])
    for row, expected in enumerate(single):
        assert torch.equal(mixed[row], expected[row])


@pytest.mark.parametrize("task_type", [None, "CAUSAL_LM"])
def test_greedy_generation_by_rows(task_type, ids):
    assert_generation_equals_single_runs(three_adapters(task_type=task_type), ids, do_sample=False)


@pytest.mark.parametrize("returned", [1, 3])
@pytest.mark.parametrize("in_config", [False, True], ids=["argument", "generation-config"])
def test_beam_search_by_rows(in_config, returned, ids):
    beams = {"do_sample": False, "num_beams": 3, "num_return_sequences": returned}
    if in_config:
        beams = {"generation_config": GenerationConfig(**beams, eos_token_id=2)}
    model = three_adapters()
    assert len(generate(model, ids, **beams)) == 3 * returned
    assert_generation_equals_single_runs(model, ids, **beams)


@pytest.mark.parametrize("in_config", [False, True], ids=["argument", "generation-config"])
def test_several_sampled_sequences_by_rows(in_config, ids):
    # With one candidate sampling is certain, so that runs of different batches can be compared.
    sampling = {"do_sample": True, "top_k": 1, "num_return_sequences": 2}
    if in_config:
        sampling = {"generation_config": GenerationConfig(**sampling, eos_token_id=2)}
    assert_generation_equals_single_runs(three_adapters(), ids, **sampling)


def test_beam_search_by_rows_with_modules_saved_whole(ids):
    model = three_adapters(modules_to_save=["lm_head"], target_modules=["q_proj", "down_proj"])
    for name in KINDS:
        torch.nn.init.normal_(model.base_model.model.lm_head.modules_to_save[name].weight)
    assert_generation_equals_single_runs(model, ids, do_sample=False, num_beams=2)


# -- mistakes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [logits, generate])
@pytest.mark.parametrize(
    ("names", "error", "sentence"),
    [
        (["paper", BASE], ValueError, "but got 2 and 3 respectively"),
        ([], ValueError, "but got 0 and 3 respectively"),
        (["paper"] * 6, ValueError, "but got 6 and 3 respectively"),
        (
            ["paper", "nobody", BASE],
            ValueError,
            "non-existing adapter.*: nobody; `adapter_names` may hold 'paper', 'shared', 'lora' and",
        ),
        ("paper", TypeError, "must be a list of names, one per row, not 'paper'"),
    ],
    ids=["too-few", "none", "too-many", "unknown", "no-list"],
)
def test_wrong_names_are_refused_with_a_sentence(call, names, error, sentence, ids):
    model = three_adapters()
    before = logits(model, ids)
    with pytest.raises(error, match=sentence):
        call(model, ids, adapter_names=names)
    assert torch.equal(logits(model, ids), before)


def test_rows_are_refused_in_training_mode(ids):
    model = three_adapters().train()
    with pytest.raises(ValueError, match=r"in training mode: call `model\.eval\(\)`"):
        model(input_ids=ids, adapter_names=["paper", BASE, "lora"])


@pytest.mark.parametrize("call", [logits, generate])
def test_an_error_inside_a_forward_leaves_no_rows_behind(call, ids):
    model = three_adapters(modules_to_save=["lm_head"], target_modules=["q_proj", "down_proj"])
    before = logits(model, ids)
    outside_of_the_vocabulary = ids + 99
    with pytest.raises(IndexError):
        call(model, outside_of_the_vocabulary, adapter_names=["paper", BASE, "lora"])
    assert not model.base_model.model.lm_head._forward_pre_hooks
    assert torch.equal(logits(model, ids), before)
    # Nor does the next batch of another size stumble over them.
    assert torch.equal(logits(model, ids[:2]), before[:2])


def test_an_error_inside_a_training_forward_leaves_no_mask_behind(ids):
    model = three_adapters().train()
    mask = torch.ones_like(ids)
    mask[1:, 6:] = 0
    with pytest.raises(IndexError):
        model(input_ids=ids + 99, attention_mask=mask)
    # A layer used by itself has no padding.
    layer = model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    layer(torch.randn(*ids.shape, 32))
    assert layer.state_dict()["slim_count.paper"].sum() == ids.numel()


def test_a_second_call_while_rows_are_answered_is_a_sentence(ids):
    model = three_adapters()
    hooks = model.base_model._enable_peft_forward_hooks
    with hooks(adapter_names=["__base__"] * len(ids)), pytest.raises(RuntimeError, match="one call at a time"):
        logits(model, ids, adapter_names=["paper"] * len(ids))
    logits(model, ids, adapter_names=["paper"] * len(ids))


def test_a_new_adapter_on_a_loaded_base_answers_rows_at_once(ids):
    # The wrapper that PEFT returns says it is in training mode; the base model is not.
    model = get_peft_model(build("llama"), SlimConfig(target_modules="all-linear"))
    assert torch.equal(model(ids, adapter_names=["default"] * 3).logits, build("llama")(ids).logits)
