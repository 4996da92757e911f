# SPDX-License-Identifier: Apache-2.0
"""Attaching and detaching: what stays, what goes, and that a failure in the middle leaves no trace."""

from __future__ import annotations

import gc
import sys

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

from slim_core.adapters import AdapterError, Folder, attach, describe_base, detach, open_adapter, try_out
from slim_core.method import SlimLayer
from slim_core.peft_tools import fold_masks
from tests.adapters.small import IDS, lora, save, save_slim
from tests.conftest import build
from tests.method.small import hooked, logits


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("adapters")
    wide = save_slim(root / "slim")
    narrow = save(lora(), root / "lora")
    other = save(lora(target_modules=["o_proj"]), root / "other")
    return {"slim": wide, "lora": narrow, "other": other}


def opened(folder, model):
    return open_adapter(Folder(folder), describe_base(model))


def state(model: nn.Module) -> dict:
    """Everything that a half-done attachment could leave behind."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    return {
        "modules": [(name, id(module)) for name, module in model.named_modules()],
        "tensors": [(n, id(t), t.requires_grad) for n, t in (*model.named_parameters(), *model.named_buffers())],
        "hooks": hooked(base),
        "adapters": list(getattr(model, "peft_config", {})),
        "active": getattr(model, "active_adapter", None) if isinstance(model, PeftModel) else None,
        "training": [module.training for module in model.modules()],
        "attributes": sorted(base.__dict__),
    }


@pytest.mark.parametrize("kind", ["lora", "slim"])
def test_the_first_and_last_adapter_leave_the_bare_base(kind, folders):
    base = build("llama")
    before, was = logits(base, IDS), state(base)
    model = attach(base, opened(folders[kind], base), "one")
    assert isinstance(model, PeftModel) and not model.training
    assert not torch.equal(logits(model, IDS), before)
    after = detach(model, "one")
    assert after is base and torch.equal(logits(base, IDS), before)
    frozen = [(name, key, False) for name, key, _ in was["tensors"]]
    assert state(base) == was | {"tensors": frozen}


def test_a_second_adapter_comes_and_goes_without_a_trace(folders):
    base = build("llama")
    plain = logits(base, IDS)
    model = attach(base, opened(folders["lora"], base), "mine")
    rows = ["mine", "__base__", "mine"]
    before, was = model(input_ids=IDS, adapter_names=rows).logits, state(model)
    assert attach(model, opened(folders["slim"], model), "theirs") is model
    assert model.active_adapters == ["mine"]
    assert torch.equal(model(input_ids=IDS, adapter_names=rows).logits, before)
    theirs = model(input_ids=IDS, adapter_names=["theirs", "__base__", "mine"]).logits
    assert not torch.allclose(theirs[0], plain[0]) and torch.equal(theirs[2], before[2])
    assert detach(model, "theirs") is model
    assert state(model) == was
    assert torch.equal(model(input_ids=IDS, adapter_names=rows).logits, before)


@pytest.mark.filterwarnings("error:.*was active which is now deleted")
def test_the_adapter_that_came_first_may_go_first(folders):
    base = build("llama")
    model = attach(base, opened(folders["slim"], base), "first")
    model = attach(model, opened(folders["lora"], model), "second")
    rows = ["second", "__base__", "second"]
    before = model(input_ids=IDS, adapter_names=rows).logits
    model = detach(model, "first")
    assert torch.equal(model(input_ids=IDS, adapter_names=rows).logits, before)
    # Only the four Linears of the second are still wrapped.
    assert sum(isinstance(m, SlimLayer) for m in model.modules()) == 4


def test_an_adapter_whose_masks_were_folded_goes_like_any_other(folders):
    base = build("llama")
    model = attach(base, opened(folders["lora"], base), "mine")
    was = state(model)
    attach(model, opened(folders["slim"], model), "theirs")
    fold_masks(model, "theirs")
    assert state(detach(model, "theirs")) == was


def test_random_numbers_stay_as_they_are(folders):
    base = build("llama")
    adapter = opened(folders["slim"], base)
    before = torch.get_rng_state()
    attach(base, adapter, "one")
    assert torch.equal(torch.get_rng_state(), before)


def test_fifty_adapters_leave_memory_and_modules_where_they_were(folders):
    base = build("llama")
    model = attach(base, opened(folders["other"], base), "demo")

    def visit(number: int) -> None:
        adapter = opened(folders["slim" if number % 2 else "lora"], model)
        attach(model, adapter, f"visitor-{number}")
        model(input_ids=IDS, adapter_names=[f"visitor-{number}", "__base__", "demo"])
        detach(model, f"visitor-{number}")
        adapter.delete()

    def footprint() -> tuple[int, int, int, dict]:
        gc.collect()
        objects = gc.get_objects()
        alive = [o for o in objects if isinstance(o, torch.Tensor)]
        layers = sum(isinstance(o, SlimLayer) for o in objects)
        return len(alive), sum(t.nbytes for t in alive), layers, state(model)

    visit(0), visit(1)
    before = footprint()
    for number in range(2, 52):
        visit(number)
    assert footprint() == before


# -- failures ----------------------------------------------------------------------------------------------------


def fail_after(monkeypatch, owner, name: str, calls: int, error: BaseException) -> None:
    real, count = getattr(owner, name), 0

    def failing(*args, **kwargs):
        nonlocal count
        count += 1
        if count > calls:
            raise error
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, failing)


FULL = [
    torch.OutOfMemoryError("full"),
    MemoryError(),
    RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("MPS backend out of memory"),
]
ERRORS = [RuntimeError("broken"), KeyboardInterrupt(), *FULL]
FAILURES = {
    "in the middle of building": (SlimLayer, "update_layer", 5),
    "at the start": (PeftModel, "add_adapter", 0),
    "while filling": ("slim_core.adapters.attach", "set_peft_model_state_dict", 0),
}


@pytest.mark.parametrize("error", ERRORS, ids=repr)
@pytest.mark.parametrize("first", [None, "lora", "slim"])
@pytest.mark.parametrize("where", FAILURES)
def test_a_failure_leaves_the_model_as_it_was(where, first, error, folders, monkeypatch):
    model = build("llama")
    if first:
        model = attach(model, opened(folders[first], model), "mine")
    elif where == "at the start":
        pytest.skip("a bare base gets its first adapter in another way")
    rows = {"adapter_names": ["mine", "__base__", "mine"]} if first else {}
    adapter = opened(folders["slim"], model)
    before, was = model(input_ids=IDS, **rows).logits, state(model)
    owner, name, calls = FAILURES[where]
    fail_after(monkeypatch, sys.modules[owner] if isinstance(owner, str) else owner, name, calls, error)
    with pytest.raises(AdapterError if error in FULL else type(error)):
        attach(model, adapter, "theirs")
    assert state(model) == was
    assert torch.equal(model(input_ids=IDS, **rows).logits, before)
    monkeypatch.undo()
    attach(model, adapter, "theirs")  # and it still can be attached


def test_an_adapter_checked_for_another_base_is_checked_again(folders):
    base, other = build("llama"), build("gpt2")
    adapter = opened(folders["lora"], base)
    before, was = logits(other, IDS), state(other)
    with pytest.raises(AdapterError, match="`target_modules` names 'q_proj', 'v_proj', and"):
        attach(other, adapter, "one")
    assert state(other) == was and torch.equal(logits(other, IDS), before)


def test_an_adapter_whose_files_are_gone(folders):
    base = build("llama")
    adapter = opened(folders["lora"], base)
    adapter.delete()
    with pytest.raises(AdapterError, match="The files of 'lora' were removed"):
        attach(base, adapter, "one")


@pytest.mark.parametrize("name", ["", "a.b", "__base__", "keys"])
def test_names_that_cannot_be(name, folders):
    base = build("llama")
    adapter, was = opened(folders["lora"], base), state(base)
    with pytest.raises(ValueError, match="cannot be named"):
        attach(base, adapter, name)
    assert state(base) == was


def test_a_name_that_is_taken_and_one_that_is_not(folders):
    base = build("llama")
    adapter = opened(folders["lora"], base)
    model = attach(base, adapter, "one")
    with pytest.raises(ValueError, match="already has an adapter named 'one'"):
        attach(model, adapter, "one")
    with pytest.raises(ValueError, match="no adapter named 'two'"):
        detach(model, "two")


def test_a_model_with_other_adapters_is_refused(folders):
    model = get_peft_model(build("llama"), lora())
    adapter = opened(folders["lora"], build("llama"))
    with pytest.raises(ValueError, match=r"carries adapters of the kind .*LORA, not SLIM"):
        attach(model, adapter, "one")


# -- trying it out -----------------------------------------------------------------------------------------------


def test_numbers_that_overflow_together_are_found_out(folders):
    base = build("llama")
    model = attach(base, opened(folders["slim"], base), "one")
    try_out(model, "one")
    for layer in model.modules():
        if isinstance(layer, SlimLayer):
            layer.slim_B["one"].data.fill_(3e38)
    with pytest.raises(AdapterError, match="answers overflow"):
        try_out(model, "one")
