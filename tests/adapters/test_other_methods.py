# SPDX-License-Identifier: Apache-2.0
"""Adapters of other methods from somewhere else: what is wrong with one is a sentence, and the model is as it was."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

from slim_core import baselines
from slim_core.adapters import AdapterError, Folder, attach, check, describe_base, detach, open_adapter
from slim_core.peft_tools import adapter_rows
from tests.baselines.small import IDS, small_base, stirred
from tests.conftest import build


# By that name the package has the function.
ATTACHING = importlib.import_module("slim_core.adapters.attach")
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MLP = "base_model.model.model.layers.1.mlp."
KINDS = [method.name for method in baselines.KINDS.values()]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of a stirred adapter of each kind."""
    root = tmp_path_factory.mktemp("kinds")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for kind in KINDS:
            stirred(kind).save_pretrained(root / kind)
    return root


def config(**changes):
    def spoil(folder):
        raw = json.loads((folder / CONFIG).read_text()) | changes
        (folder / CONFIG).write_text(json.dumps(raw))

    return spoil


def tensors(change):
    def spoil(folder):
        save_file({k: t.contiguous() for k, t in change(load_file(folder / WEIGHTS)).items()}, folder / WEIGHTS)

    return spoil


def without(ending):
    return tensors(lambda weights: {k: t for k, t in weights.items() if not k.endswith(ending)})


def changed(ending, change):
    return tensors(lambda weights: {k: change(t) if k.endswith(ending) else t for k, t in weights.items()})


# Kind, what is spoiled, and the sentence; whether it is known without a base too.
BAD = {
    "a factor is missing": ("loramoe", without("1.mlp.up_proj.loramoe_B"), "not all there|missing", True),
    "a router is missing": (
        "mola",
        without("1.mlp.up_proj.mola_router"),
        "mola_router' is missing|tensors .*missing",
        True,
    ),
    "an MLP's factor is missing": ("mixlora", without("1.mlp.mixlora_down_A"), "missing", True),
    "a gate is missing": ("disel", without("1.mlp.up_proj.disel_gate_bias"), "missing", True),
    "a rotation is missing": ("oft", without("1.mlp.up_proj.oft_R.weight"), "are missing", False),
    "one tensor too many": (
        "mola",
        tensors(lambda weights: weights | {f"{MLP}up_proj.mola_extra": torch.ones(2)}),
        "has no place|do not belong|does not belong",
        True,
    ),
    "experts of another number": ("loramoe", config(num_experts=3), "has the shape", True),
    "blocks of another number": ("mola", config(num_experts=[2, 2]), "by the config|has the shape|shape", True),
    "another rank": ("disel", config(r=4), "has the shape", True),
    "another block size": ("oft", config(oft_block_size=16), "has the shape", True),
    "a number that is none": ("mixlora", changed("1.mlp.mixlora_up_A", lambda t: t * torch.nan), "not finite", True),
    "a number too large": ("disel", changed("1.mlp.up_proj.disel_gate", lambda t: t + 1e9), "no weight may be", True),
    "whole numbers": ("mola", changed("1.mlp.up_proj.mola_A", lambda t: t.long()), "has the dtype I64", True),
    "too many experts": ("loramoe", config(num_experts=10**6), "`num_experts` is 1000000; it must be a whole", True),
    "no experts": ("mola", config(num_experts=[]), "`num_experts` must list numbers of experts", True),
    "experts in words": (
        "mola",
        config(num_experts="many"),
        "`num_experts` is 'many'; it must be a whole number",
        True,
    ),
    "more kept than there are": ("mixlora", config(top_k=9), "`top_k` is 9, but there are only 4 experts", True),
    "a rank of nothing": ("loramoe", config(r=0), "`r` must be 1 or more", True),
    "no targets": ("mola", config(target_modules=None), "`target_modules` is unset", True),
    "targets that are not there": ("mola", config(target_modules=["nowhere"]), "target_modules", True),
    "a field of the future": ("disel", config(gate_shape="wide"), "'gate_shape' is unknown and set", True),
    "a format of the future": ("disel", config(format_version=9), "saved in format 9", True),
    "an MLP and a part of it": (
        "mixlora",
        config(target_modules=["mlp", "up_proj", "q_proj", "k_proj", "v_proj", "o_proj"]),
        "names .*up_proj.* and the MLP that it is a part of",
        False,
    ),
    "the constrained rotation": ("oft", config(coft=True), "`coft` is True; an OFT must be trained with False", True),
    "shared rotations": ("oft", config(block_share=True), "`block_share` is True", True),
    "a block of nothing": ("oft", config(oft_block_size=0, r=4), "`r` is 4; an OFT|oft_block_size", True),
    "masks of everything": ("mixlora", config(mask_rate=1.0), "`mask_rate` must be 0 or more and below 1", True),
}


def failure(folder, base=None):
    last = list(check(Folder(folder), None if base is None else describe_base(base)))[-1]
    return last.sentence if last.state == "failed" else None


@pytest.fixture(scope="module")
def base():
    return small_base()


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_one_sentence(name, saved, base, tmp_path):
    kind, spoil, words, alone = BAD[name]
    folder = shutil.copytree(saved / kind, tmp_path / "bad")
    spoil(folder)
    for where in (base, *([None] if alone else [])):
        sentence = failure(folder, where)
        assert sentence is not None and re.search(words, sentence), sentence
        assert sentence.isprintable() and sentence.endswith(".") and len(sentence) < 700


@pytest.mark.parametrize("kind", KINDS)
def test_another_base_is_refused(kind, saved):
    with_other_sizes = small_base(intermediate_size=64)
    sentence = failure(saved / kind, with_other_sizes)
    assert sentence is not None and "made for another base" in sentence
    # GPT-2's modules have other names, and its MLP no gate.
    sentence = failure(saved / kind, build("gpt2"))
    reason = "has no such module" if kind != "mixlora" else "is not a Linear or gated MLP"
    assert sentence is not None and reason in sentence


@pytest.mark.parametrize("kind", KINDS)
def test_one_that_changes_nothing_is_marked(kind, saved, base, tmp_path):
    folder = shutil.copytree(saved / kind, tmp_path / "still")
    tensors(lambda weights: {k: torch.zeros_like(t) for k, t in weights.items()})(folder)
    states = {result.name: result.state for result in check(Folder(folder), describe_base(base))}
    assert states["changes something"] == "warning" and states["ready"] == "passed"


@torch.no_grad()
def test_all_kinds_are_rows_of_one_batch_beside_slim_and_a_lora_in_any_order(saved, tmp_path):
    """And when they leave, in another order than they came, nothing of them stays."""
    kinds = ("mixlora", "slim", "disel", "lora", "oft", "loramoe", "mola")
    for kind in ("slim", "lora"):
        stirred(kind).save_pretrained(tmp_path / kind)
    model = base = small_base()
    plain = base(input_ids=IDS[:1]).logits
    expected = {kind: stirred(kind)(input_ids=IDS[:1]).logits for kind in kinds}
    for kind in kinds:
        folder = (tmp_path if kind in ("slim", "lora") else saved) / kind
        adapter = open_adapter(Folder(folder), describe_base(model))
        model = attach(model, adapter, f"row-{kind}").eval()
        adapter.delete()
    with pytest.raises(ValueError, match="already has an adapter named"):
        attach(model, adapter, "row-disel")
    names = [f"row-{kind}" for kind in kinds]
    with adapter_rows(model, [*names, "__base__"]):
        actual = model(input_ids=IDS[:1].expand(8, -1)).logits
    for i, kind in enumerate(kinds):
        assert torch.allclose(actual[i], expected[kind][0], rtol=1e-4, atol=1e-4), kind
    assert torch.equal(actual[-1], plain[0])
    for kind in ("slim", "oft", "mixlora", "lora", "mola"):
        model = detach(model, f"row-{kind}")
        left = [name for name in names if name in ATTACHING.names_on(model)]
        with adapter_rows(model, ["__base__", *left[:1]]):
            assert torch.equal(model(input_ids=IDS[:1].expand(1 + len(left[:1]), -1)).logits[0], plain[0])
    for kind in ("disel", "loramoe"):
        model = detach(model, f"row-{kind}")
    assert model is base and torch.equal(base(input_ids=IDS[:1]).logits, plain)
    assert not [n for n, m in base.named_modules() if m._forward_hooks or m._forward_pre_hooks]
    with pytest.raises(ValueError, match="no adapter"), adapter_rows(model, ["__base__"]):
        pass


@torch.no_grad()
def test_a_failure_leaves_the_model_as_it_was(saved, monkeypatch):
    def full(*args):
        raise RuntimeError("CUDA out of memory")

    model = small_base()
    plain = model(input_ids=IDS).logits
    adapter = open_adapter(Folder(saved / "mixlora"), describe_base(model))
    monkeypatch.setattr(ATTACHING, "put_tables", full)
    try:
        with pytest.raises(AdapterError, match="no memory left"):
            attach(model, adapter, "x")
    finally:
        adapter.delete()
    assert torch.equal(model(input_ids=IDS).logits, plain)
    assert not [n for n, m in model.named_modules() if m._forward_hooks or m._forward_pre_hooks]
    assert not [key for key in vars(model) if key.startswith("_row")]
