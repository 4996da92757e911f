# SPDX-License-Identifier: Apache-2.0
"""PEFT LoRA files as rows of a SLIM batch: converted without loss, or refused with a sentence."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from slim_core import SlimConfig, load_lora
from slim_core.adapters import Folder, attach, describe_base, open_adapter
from slim_core.method.layer import SlimLayer
from slim_core.peft_tools import lora_to_slim
from tests.conftest import TINY, build


def saved_lora(folder, family="llama", **changes):
    """A random LoRA on disk, and its model."""
    config = LoraConfig(**({"r": 4, "lora_alpha": 6, "init_lora_weights": False} | changes))
    model = get_peft_model(build(family), config).eval()
    model.save_pretrained(folder)
    return model


def slim_model(family="llama"):
    config = SlimConfig(r=2, num_experts=3, num_clusters=4, init_weights=False, target_modules="all-linear")
    model = get_peft_model(build(family), config, adapter_name="my-slim")
    model.train()(torch.randint(3, 99, (2, 10)))
    return model.eval()


@pytest.mark.parametrize("family", [*TINY, "stories"])
def test_base_lora_and_slim_answer_in_one_forward(family, tmp_path, ids):
    lora = saved_lora(tmp_path, family, target_modules="all-linear")
    slim = slim_model(family)
    expected = [build(family)(ids[:1]).logits, lora(ids[1:2]).logits, slim(ids[2:3]).logits]
    both = load_lora(slim, tmp_path, "my-lora")
    assert both is slim and both.active_adapters == ["my-slim"]
    together = both(ids, adapter_names=["__base__", "my-lora", "my-slim"]).logits
    torch.testing.assert_close(together, torch.cat(expected), rtol=1e-4, atol=2e-4)


def test_a_lora_can_be_a_row_of_a_bare_base_model(tmp_path, ids):
    expected = saved_lora(tmp_path, target_modules=["q_proj", "down_proj"])(ids).logits
    model = load_lora(build("llama"), tmp_path, "mine")
    assert isinstance(model, PeftModel)
    torch.testing.assert_close(model(ids, adapter_names=["mine"] * 3).logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"target_modules": ["q_proj"], "use_rslora": True},
        {"target_modules": ["q_proj", "up_proj"], "rank_pattern": {"up_proj": 3}, "alpha_pattern": {"up_proj": 9}},
        {"target_modules": r".*\.1\..*v_proj"},
        {"target_modules": ["q_proj"], "layers_to_transform": [1]},
        {"target_modules": "all-linear", "exclude_modules": ["o_proj"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    ],
    ids=str,
)
def test_every_plain_lora_converts_without_loss(changes, tmp_path, ids):
    lora = saved_lora(tmp_path, **changes)
    if "modules_to_save" in changes:
        with torch.no_grad():
            lora.base_model.model.lm_head.modules_to_save["default"].weight.add_(0.1)
        lora.save_pretrained(tmp_path)
    model = load_lora(slim_model(), tmp_path, "my-lora")
    rows = ["my-lora", "__base__", "my-lora"]
    logits = model(ids, adapter_names=rows).logits
    torch.testing.assert_close(logits[[0, 2]], lora(ids).logits[[0, 2]], rtol=1e-5, atol=1e-5)
    assert torch.equal(logits[1], build("llama")(ids).logits[1])


def test_the_factors_are_the_files_bit_for_bit(tmp_path):
    saved_lora(tmp_path, target_modules=["q_proj"])
    file = load_file(tmp_path / "adapter_model.safetensors")
    model = load_lora(slim_model(), tmp_path, "my-lora")
    for name, layer in model.named_modules():
        if isinstance(layer, SlimLayer) and "my-lora" in layer.slim_A:
            assert torch.equal(layer.slim_A["my-lora"], file[f"{name}.lora_A.weight"])
            assert torch.equal(layer.slim_B["my-lora"], file[f"{name}.lora_B.weight"])
            assert "my-lora" not in layer.slim_router and "my-lora" not in layer.slim_center


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("use_dora", True),
        ("lora_bias", True),
        ("bias", "lora_only"),
        ("alora_invocation_tokens", [1]),
        ("layer_replication", [[0, 2]]),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "olora"),
    ],
)
def test_more_than_a_plain_lora_is_refused_by_name(field, value):
    config = LoraConfig(target_modules=["q_proj"])
    setattr(config, field, value)
    with pytest.raises(ValueError, match=f"{field}"):
        lora_to_slim(config, {})


def test_a_dora_is_no_expert_and_the_sentence_says_what_takes_it(tmp_path, ids):
    dora = saved_lora(tmp_path, target_modules=["q_proj"], use_dora=True)
    model = slim_model()
    with pytest.raises(ValueError, match=r"a DoRA also scales .* `open_adapter` and `attach` of"):
        load_lora(model, tmp_path, "my-dora")
    assert list(model.peft_config) == ["my-slim"]
    both = attach(model, open_adapter(Folder(tmp_path), describe_base(model)), "my-dora")
    logits = both(ids, adapter_names=["__base__", "my-dora", "my-slim"]).logits
    torch.testing.assert_close(logits[1:2], dora(ids[1:2]).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("key", "shape", "sentence"),
    [
        ("base_model.model.embed.lora_embedding_A", (4, 8), "neither `lora_A.weight` nor `lora_B.weight`"),
        ("base_model.model.q.lora_magnitude_vector", (8,), "changes more than Linears"),
        ("base_model.model.conv.lora_A.weight", (4, 8, 3, 3), "adapts a convolution"),
        ("base_model.model.embed_tokens.weight", (8, 8), "changes more than Linears"),
    ],
)
def test_tensors_that_are_no_lora_of_a_linear_are_refused_by_name(key, shape, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        lora_to_slim(LoraConfig(target_modules=["q"]), {key: torch.zeros(shape)})
    assert key in str(error.value)


def break_shape(folder):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    key = next(k for k in tensors if "lora_A" in k)
    tensors[key] = torch.zeros(4, 7)
    save_file(tensors, path)


def drop_a_tensor(folder):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors.pop(next(iter(tensors)))
    save_file(tensors, path)


def add_a_tensor(folder):
    path = folder / "adapter_model.safetensors"
    save_file(load_file(path) | {"base_model.model.nowhere.lora_A.weight": torch.zeros(4, 8)}, path)


def truncate(folder):
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:100])


def remove(name):
    return lambda folder: (folder / name).unlink()


def other_kind(folder):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({"peft_type": "IA3", "target_modules": ["q_proj"], "feedforward_modules": []}))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (break_shape, r"lora_A.weight` has the shape \[4, 7\], not \[4, 32\]"),
        (drop_a_tensor, "is missing from the adapter file"),
        (add_a_tensor, "is in the adapter file but does not belong"),
        (truncate, "cannot be read as safetensors"),
        (remove("adapter_model.safetensors"), "needs `adapter_model.safetensors`"),
        (remove("adapter_config.json"), "needs `adapter_config.json`"),
        (other_kind, "of the kind .*IA3, not LORA"),
    ],
)
def test_a_damaged_lora_is_a_sentence_and_leaves_the_model_as_it_was(damage, sentence, tmp_path, ids):
    saved_lora(tmp_path, target_modules=["q_proj"])
    damage(tmp_path)
    model = slim_model()
    before = model(ids).logits
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        load_lora(model, tmp_path, "my-lora")
    assert list(model.peft_config) == ["my-slim"] and model.active_adapters == ["my-slim"]
    assert torch.equal(model(ids).logits, before)
    assert not any("my-lora" in layer.slim_A for layer in model.modules() if isinstance(layer, SlimLayer))


@pytest.mark.parametrize("damage", [break_shape, drop_a_tensor, add_a_tensor])
def test_a_damaged_lora_leaves_a_bare_base_bare(damage, tmp_path, ids):
    saved_lora(tmp_path, target_modules=["q_proj"])
    damage(tmp_path)
    base = build("llama")
    before = base(ids).logits
    with pytest.raises(ValueError, match="does not fit the base model"):
        load_lora(base, tmp_path, "my-lora")
    assert not any(isinstance(m, SlimLayer) or m._forward_hooks or m._forward_pre_hooks for m in base.modules())
    assert torch.equal(base(ids).logits, before)


@pytest.mark.parametrize("text", ["{not json", '{"peft_type": "FOO"}', "[]"])
def test_a_file_that_is_no_configuration_is_a_sentence(text, tmp_path):
    saved_lora(tmp_path, target_modules=["q_proj"])
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(ValueError, match=r"adapter_config.json is not an adapter configuration"):
        load_lora(slim_model(), tmp_path, "my-lora")


@pytest.mark.parametrize("name", ["my", "slim", "default", "model", "lora"])
def test_a_row_may_have_a_name_that_is_part_of_others(name, tmp_path, ids):
    saved_lora(tmp_path, target_modules=["q_proj"])
    model = load_lora(load_lora(slim_model(), tmp_path, "lora2"), tmp_path, name)
    rows = model(ids, adapter_names=[name, "lora2", "__base__"]).logits
    torch.testing.assert_close(model(ids[:1], adapter_names=["lora2"]).logits, rows[:1], rtol=1e-5, atol=1e-5)


def test_a_lora_on_the_output_head_is_a_row_too(tmp_path, ids):
    # PEFT saves the head's own weight with such an adapter.
    expected = saved_lora(tmp_path, target_modules=["q_proj", "lm_head"])(ids).logits
    assert any("base_layer" in key for key in load_file(tmp_path / "adapter_model.safetensors"))
    model = load_lora(slim_model(), tmp_path, "my-lora")
    torch.testing.assert_close(model(ids, adapter_names=["my-lora"] * 3).logits, expected, rtol=1e-5, atol=1e-5)


def test_a_lora_that_was_saved_with_another_head_is_refused(tmp_path):
    saved_lora(tmp_path, target_modules=["q_proj", "lm_head"])
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    key = next(k for k in tensors if "base_layer" in k)
    save_file(tensors | {key: tensors[key] + 1}, path)
    with pytest.raises(ValueError, match=f"`{key}` is neither"):
        load_lora(slim_model(), tmp_path, "my-lora")


def test_a_lora_model_is_no_place_for_a_slim_row(tmp_path):
    lora = saved_lora(tmp_path, target_modules=["q_proj"])
    with pytest.raises(ValueError, match="not SLIM"):
        load_lora(lora, tmp_path, "again")
