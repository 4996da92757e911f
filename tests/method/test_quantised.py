# SPDX-License-Identifier: Apache-2.0
"""SLIM on 4- and 8-bit bases of the real bitsandbytes, and the guards against two of its traps on some CPUs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_layer_status, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from slim_core import SlimConfig
from slim_core.method import SlimLayer
from tests.conftest import every_device, tiny_llama
from tests.method.small import transformers_takes_peft


bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")

NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
KINDS = {
    "nf4": {**NF4, "bnb_4bit_use_double_quant": False},
    "nf4-double": {**NF4, "bnb_4bit_use_double_quant": True},
    "int8": {"load_in_8bit": True},
}
UNROUTED = {"num_experts": 1, "num_identity": 0, "top_k": 1, "merge": "none"}
BACKENDS = {"nf4": "bnb 4bit", "nf4-double": "bnb 4bit", "int8": "bnb 8bit"}
every_kind = pytest.mark.parametrize("kind", KINDS)


only_where_repacked = pytest.mark.skipif(
    not bnb.functional.has_avx512bf16(), reason="bitsandbytes repacks 4-bit weights only on CPUs with AVX512-BF16"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A small Llama on disk. Its sizes are multiples of 64, the block size of the quantisation."""
    path = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    tiny_llama(vocab_size=128, hidden_size=64, intermediate_size=128, head_dim=16).save_pretrained(path)
    return path


def load(folder: Path, kind: str, device: str = "cpu") -> nn.Module:
    config = BitsAndBytesConfig(**KINDS[kind])
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, device_map=device).eval()


def slim(**changes) -> SlimConfig:
    return SlimConfig(**{"r": 2, "num_experts": 3, "num_identity": 1, "num_clusters": 4, **changes})


def adapt(base: nn.Module, **changes) -> PeftModel:
    torch.manual_seed(1)
    return get_peft_model(base, slim(**changes))


@torch.no_grad()
def logits(model: nn.Module, ids: torch.Tensor, **kwargs) -> torch.Tensor:
    return model.eval()(input_ids=ids.to(model.device), **kwargs).logits


@torch.no_grad()
def base_logits(folder: Path, kind: str, device: str, ids: torch.Tensor) -> torch.Tensor:
    """Of the base by itself; of a 4-bit one in training mode, in which no CPU repacks it and rounds its products."""
    base = load(folder, kind, device).train(kind != "int8")
    return base(input_ids=ids.to(base.device)).logits


def step_loss(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    ids = ids.to(model.device)
    return model.train()(input_ids=ids, labels=ids).loss


def train(model: nn.Module, ids: torch.Tensor, steps: int) -> set[str]:
    """Names of the parameters that got a gradient in some step."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    moved: set[str] = set()
    for _ in range(steps):
        optimizer.zero_grad()
        step_loss(model, ids).backward()
        moved |= {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        optimizer.step()
    return moved


def eval_loss(model: nn.Module, ids: torch.Tensor) -> float:
    predicted = logits(model, ids)[:, :-1].flatten(0, 1).float()
    return nn.functional.cross_entropy(predicted, ids[:, 1:].flatten().to(predicted.device)).item()


def quantised_linears(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if isinstance(m, (bnb.nn.Linear4bit, bnb.nn.Linear8bitLt))]


# -- the method on a quantised base ------------------------------------------------------------------------------


@every_kind
@every_device
def test_a_new_adapter_changes_nothing_on_a_quantised_base(kind, device, folder, ids):
    base = load(folder, kind, device)
    before = base_logits(folder, kind, device, ids)
    assert len(quantised_linears(base)) == 14
    model = adapt(base)
    assert torch.equal(logits(model, ids), before)
    status = get_layer_status(model)
    assert len(status) == 14 and {layer.quantization_backend for layer in status} == {BACKENDS[kind]}


@every_kind
@every_device
def test_training_on_a_quantised_base_lowers_the_loss(kind, device, folder, ids):
    model = adapt(load(folder, kind, device))
    before = eval_loss(model, ids)
    # At so high a rate the contexts of the upper layers run ahead of their clusters for some ten steps.
    moved = train(model, ids, steps=20)
    adapter = {name for name, p in model.named_parameters() if p.requires_grad}
    assert adapter and all(".slim_" in name for name in adapter)
    assert moved == adapter
    assert eval_loss(model, ids) < before - 0.1


@every_kind
@every_device
def test_an_adapter_of_a_quantised_base_is_saved_and_loaded_bit_for_bit(kind, device, folder, tmp_path, ids):
    model = adapt(load(folder, kind, device), yield_mode="calibrated", router_scope="block")
    train(model, ids, steps=2)
    model.save_pretrained(tmp_path)
    expected = logits(model, ids)
    assert not torch.allclose(expected, base_logits(folder, kind, device, ids))
    loaded = PeftModel.from_pretrained(load(folder, kind, device), tmp_path)
    assert torch.equal(logits(loaded, ids), expected)


@every_kind
@every_device
def test_disabling_and_unloading_give_back_the_quantised_base(kind, device, folder, ids):
    before = base_logits(folder, kind, device, ids)
    model = adapt(load(folder, kind, device))
    train(model, ids, steps=2)
    assert not torch.allclose(logits(model, ids), before)
    with model.disable_adapter():
        assert torch.equal(logits(model, ids), before)
    unloaded = model.unload()
    assert not any(isinstance(m, SlimLayer) for m in unloaded.modules()) and len(quantised_linears(unloaded)) == 14
    assert torch.equal(logits(unloaded, ids), before)


@every_kind
@every_device
def test_rows_of_a_quantised_base_equal_single_runs(kind, device, folder, ids):
    model = adapt(load(folder, kind, device), init_weights=False)
    model.add_adapter("lora", slim(**UNROUTED, init_weights=False))
    names = ["default", "__base__", "lora"]
    mixed = logits(model, ids, adapter_names=names)
    with model.disable_adapter():
        expected = {"__base__": logits(model, ids)}
    for name in ("default", "lora"):
        model.set_adapter(name)
        expected[name] = logits(model, ids)
        assert (expected[name] - expected["__base__"]).abs().max() > 0.2
    # 8-bit bases round their inputs too, so a difference in the last place can become one of a step.
    for row, name in enumerate(names):
        torch.testing.assert_close(mixed[row], expected[name][row], atol=0.02 if kind == "int8" else 2e-5, rtol=0)


@every_kind
@every_device
def test_a_closed_gate_is_the_quantised_base_bit_for_bit(kind, device, folder, ids):
    before = base_logits(folder, kind, device, ids)
    model = adapt(load(folder, kind, device), init_weights=False, context_warmup=ids.shape[1])
    assert torch.equal(logits(model, ids), before)
    with torch.no_grad():
        rows = model.eval()(input_ids=ids.to(model.device), adapter_names=["default", "__base__", "default"]).logits
    assert torch.equal(rows, before)
    for config in model.peft_config.values():
        config.context_warmup = 0
    assert not torch.allclose(logits(model, ids), before, atol=0.01)


@every_kind
@every_device
def test_merging_into_a_quantised_base_is_refused(kind, device, folder, ids):
    model = adapt(load(folder, kind, device), init_weights=False)
    before = logits(model, ids)
    with pytest.raises(NotImplementedError, match=r"slim_core\.export_lora"):
        model.merge_and_unload()
    assert torch.equal(logits(model, ids), before)


def test_an_adapter_moves_between_bases_of_different_precision(folder, tmp_path, ids):
    # Shapes are those of the Linear, not of its packed weight, so the fingerprint is the same.
    adapt(load(folder, "nf4"), init_weights=False).save_pretrained(tmp_path)
    whole = AutoModelForCausalLM.from_pretrained(folder).eval()
    before = logits(whole, ids)
    assert not torch.allclose(logits(PeftModel.from_pretrained(whole, tmp_path), ids), before)


# -- the traps of repacked 4-bit weights on CPUs with AVX512-BF16 ------------------------------------------------


def gradients(model: nn.Module, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    torch.manual_seed(2)  # the first clusters and the masks are drawn
    step_loss(model, ids).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj"]], ids=["all-linear", "some"])
@pytest.mark.parametrize("kind", ["nf4", "nf4-double"])
def test_a_forward_in_evaluation_mode_does_not_change_later_gradients(kind, targets, folder, ids):
    # With ["q_proj"] most of what the gradient passes through is not adapted.
    fresh = adapt(load(folder, kind), target_modules=targets, init_weights=False)
    used = adapt(load(folder, kind), target_modules=targets, init_weights=False)
    logits(used, ids)
    expected, actual = gradients(fresh, ids), gradients(used, ids)
    assert all(gradient is not None and gradient.isfinite().all() for gradient in expected.values())
    assert [name for name in expected if actual[name] is None or not torch.equal(actual[name], expected[name])] == []


@pytest.mark.parametrize("kind", ["nf4", "nf4-double"])
def test_a_forward_in_evaluation_mode_does_not_change_the_state_dict(kind, folder, ids):
    model = adapt(load(folder, kind), target_modules=["q_proj"])
    before = {key: value.clone() for key, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
    assert any("quant_state" in key for key in before)
    logits(model, ids)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert [key for key, value in before.items() if not torch.equal(after[key], value)] == []


@pytest.mark.parametrize(
    "native",
    [pytest.param(False, id="peft"), pytest.param(True, id="transformers", marks=transformers_takes_peft)],
)
def test_no_4bit_linear_is_repacked_whether_adapted_or_not(native, folder, ids):
    model = load(folder, "nf4")
    if native:
        model.add_adapter(slim(target_modules=["q_proj"]))
    else:
        model = adapt(model, target_modules=["q_proj"])
    logits(model, ids)
    packed = [getattr(m.weight.quant_state, "packing_format_for_cpu", False) for m in quantised_linears(model)]
    assert packed == [False] * 14


ATTACH = {
    "new": lambda base, folder: adapt(base),
    "loaded": lambda base, folder: PeftModel.from_pretrained(base, folder),
    "transformers": lambda base, folder: base.load_adapter(str(folder)),
}


@only_where_repacked
@pytest.mark.parametrize("attach", ATTACH)
@pytest.mark.parametrize("kind", ["nf4", "nf4-double"])
def test_a_base_that_was_already_repacked_is_refused(kind, attach, folder, tmp_path, ids):
    # For training, since no gradient passes. For serving, since PEFT takes the state dict when it loads an adapter,
    # upon which bitsandbytes unpacks the weights of the running model, and wrongly.
    adapt(load(folder, kind)).save_pretrained(tmp_path)
    base = load(folder, kind)
    before = logits(base, ids)  # repacks
    with pytest.raises(RuntimeError, match=r"`model\.layers\.0\.\S+` was repacked for this CPU.* Load the base model"):
        ATTACH[attach](base, tmp_path)
    assert not any(isinstance(m, SlimLayer) for m in base.modules())
    assert torch.equal(logits(base, ids), before)
