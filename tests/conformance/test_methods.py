# SPDX-License-Identifier: Apache-2.0
"""What every method must do, SLIM and those to compare it with, as the registry lists them."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import DynamicCache

from slim_core.baselines import METHODS
from tests.baselines.small import IDS, adapted, configured, small_base, stir, stirred


# PEFT's own code computes their rows, where it can.
PEFTS_OWN = {name for name, method in METHODS.items() if method.tuner is None}
WITH_ROWS = [name for name in METHODS if name not in ("dora", "oft")]
OWN = [name for name in METHODS if name not in PEFTS_OWN]
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
# A magnitude is the norm of the weight it is divided by, but for rounding; a rotation is one but for its series.
ROUNDED = ("dora", "oft")


@pytest.fixture(scope="module", params=METHODS)
def method(request):
    return request.param


@pytest.fixture(scope="module")
def model(method):
    """One that nobody may change."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return stirred(method)


@pytest.fixture(scope="module")
def plain():
    return logits(small_base())


@torch.no_grad()
def logits(model, ids=IDS, **inputs):
    return model(input_ids=ids, **inputs).logits


def test_a_new_adapter_changes_nothing_and_a_trained_one_does(method, model, plain):
    new = logits(adapted(method))
    assert torch.allclose(new, plain, **CLOSE) if method in ROUNDED else torch.equal(new, plain)
    assert (logits(model) - plain).abs().max() > 0.1


def test_what_is_saved_is_all_of_it_and_loads_bit_for_bit(method, model, plain, tmp_path):
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    trained = {name: p for name, p in model.named_parameters() if ".default" in name}
    # PEFT itself shortens the name of a magnitude.
    names = {name.replace(".default", "").replace("magnitude_vector.weight", "magnitude_vector") for name in trained}
    assert names <= saved.keys()
    loaded = PeftModel.from_pretrained(small_base(), tmp_path, adapter_name="other").eval()
    assert torch.equal(logits(loaded), logits(model))


def test_a_file_of_float32_is_not_rounded_on_a_base_of_bfloat16(method, model, tmp_path):
    if method in PEFTS_OWN:
        pytest.skip("PEFT's own layers round it")
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    for flags in ({}, {"low_cpu_mem_usage": True}):
        loaded = PeftModel.from_pretrained(small_base().bfloat16(), tmp_path, **flags)
        named = {name.replace(".default", ""): p for name, p in loaded.named_parameters()}
        assert all(torch.equal(named[name], tensor) for name, tensor in saved.items() if name in named)


def test_switched_off_it_is_the_base_bit_for_bit(model, plain):
    with model.disable_adapter():
        assert torch.equal(logits(model), plain)
    assert not torch.equal(logits(model), plain)


def test_the_same_input_gives_the_same_output_twice(method):
    """Dropout and masks are for training."""
    for changes in ({}, {"dropout": 0.5}):
        config = configured(method)
        for name in ("dropout", "lora_dropout", "module_dropout"):
            if changes and hasattr(config, name):
                setattr(config, name, 0.5)
        model = get_peft_model(small_base(), config).train()
        stir(model)
        model.eval()
        assert torch.equal(logits(model), logits(model))


def test_padding_changes_nothing(model):
    whole = logits(model, IDS[:1])
    for left, right in ((4, 0), (0, 4)):
        ids = torch.nn.functional.pad(IDS[:1], (left, right), value=7)
        mask = torch.nn.functional.pad(torch.ones_like(IDS[:1]), (left, right))
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        padded = logits(model, ids, attention_mask=mask, position_ids=positions)[:, left : left + IDS.shape[1]]
        assert torch.allclose(padded, whole, **CLOSE)


def test_a_row_does_not_depend_on_its_neighbours(model):
    together = logits(model)
    for i in range(len(IDS)):
        assert torch.allclose(logits(model, IDS[i : i + 1])[0], together[i], **CLOSE)


def test_token_by_token_is_the_same_as_at_once(model):
    whole, cache, pieces = logits(model), DynamicCache(config=model.config), []
    for start, end in ((0, 5), (5, 6), (6, 7), (7, 12)):
        piece = model(input_ids=IDS[:, start:end], past_key_values=cache, use_cache=True)
        pieces.append(piece.logits.detach())
    assert torch.allclose(torch.cat(pieces, 1), whole, **CLOSE)


def test_several_adapters_stand_side_by_side(method, plain):
    model = stirred(method)
    first = logits(model)
    # A new adapter begins as it likes; what is there stays.
    torch.manual_seed(9)
    model.add_adapter("second", configured(method))
    stir(model, "second", seed=6)
    model.eval()
    assert torch.equal(logits(model), first)
    model.set_adapter("second")
    second = logits(model.eval())
    assert not torch.allclose(second, first, **CLOSE) and not torch.allclose(second, plain, **CLOSE)
    model.set_adapter("default")
    assert torch.equal(logits(model), first)
    model.delete_adapter("second")
    assert torch.equal(logits(model), first)
    assert not [name for name, _ in model.named_parameters() if ".second" in name]


@pytest.mark.parametrize("name", WITH_ROWS)
def test_rows_of_one_batch_are_different_adapters(name, plain):
    model = stirred(name)
    torch.manual_seed(9)
    model.add_adapter("second", configured(name))
    stir(model, "second", seed=6)
    model.eval()
    first = logits(model)
    model.set_adapter("second")
    second = logits(model.eval())
    model.set_adapter("default")
    names = ["second", "__base__", "default"]
    together = logits(model, adapter_names=names)
    assert torch.allclose(together[0], second[0], **CLOSE)
    assert torch.equal(together[1], plain[1])
    assert torch.allclose(together[2], first[2], **CLOSE)
    assert torch.equal(logits(model), first), "nothing of it stays"
    # Beams and several answers repeat the rows.
    written = model.generate(input_ids=IDS[:, :6], adapter_names=names, max_new_tokens=3, num_beams=2, do_sample=False)
    alone = model.generate(
        input_ids=IDS[2:, :6], adapter_names=["default"], max_new_tokens=3, num_beams=2, do_sample=False
    )
    assert torch.equal(written[2], alone[0])


@pytest.mark.parametrize("name", OWN)
def test_wrong_rows_are_refused_in_a_sentence(name):
    model = adapted(name)
    with pytest.raises(ValueError, match="non-existing adapter"):
        logits(model, adapter_names=["default", "nobody", "default"])
    with pytest.raises(ValueError, match="not a multiple of it"):
        logits(model, adapter_names=["default"] * 2)
    model.train()
    with pytest.raises(ValueError, match="training mode"):
        model(input_ids=IDS, adapter_names=["default"] * 3)


@pytest.mark.parametrize("name", OWN)
def test_it_cannot_be_merged_and_unloading_gives_the_base(name, plain):
    model = stirred(name)
    before = logits(model)
    with pytest.raises(NotImplementedError, match="cannot be merged"):
        model.merge_and_unload()
    assert torch.equal(logits(model), before)
    base = model.unload()
    assert torch.equal(logits(base), plain)
    assert not [n for n, m in base.named_modules() if m._forward_hooks or m._forward_pre_hooks]


def test_every_tensor_learns(method):
    model = stirred(method).train()
    model(input_ids=IDS, labels=IDS).loss.backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert trained and all(".default" in name for name in trained)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in trained.values())
    # Of an expert that no token was sent to, nothing is learned; of a method as a whole, something is.
    assert all(any(p.grad.abs().sum() > 0 for n, p in trained.items() if kind in n) for kind in kinds(trained))


def kinds(names):
    return {name.split(".default")[0].rpartition(".")[2] for name in names if ".default" in name}


def test_gradient_checkpointing_gives_the_same_gradients(method):
    if method == "mixlora-dy":
        pytest.skip("draws other masks in each forward")
    grads = []
    for checkpointed in (False, True):
        model = stirred(method)
        if method == "slim":
            model.peft_config["default"].mask_rate = 0.0
        if checkpointed:
            model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
        model.train()
        torch.manual_seed(0)
        model(input_ids=IDS, labels=IDS).loss.backward()
        grads.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    shared = grads[0].keys() & grads[1].keys()
    assert len(shared) == len(grads[0])
    assert all(torch.allclose(grads[0][name], grads[1][name], rtol=1e-3, atol=1e-5) for name in shared)


def test_a_copy_is_another_model(model):
    other = copy.deepcopy(model)
    assert torch.equal(logits(other), logits(model))
    stir(other)
    assert not torch.equal(logits(other), logits(model))
