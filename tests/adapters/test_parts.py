# SPDX-License-Identifier: Apache-2.0
"""DoRAs, and adapters with a head, an embedding or tokens of their own, as rows: exactly what PEFT makes of them."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from slim_core.adapters import Folder, attach, describe_base, detach, open_adapter, part_tensors
from slim_core.inference.describe import bytes_by_device
from slim_core.method import guard_cpu_4bit
from tests.adapters.small import IDS, lora
from tests.adapters.test_attach import state
from tests.conftest import SIZES, build, tiny_llama
from tests.method.small import logits, slim
from tests.method.test_quantised import NF4


LINEARS = {"gpt2": ["c_attn", "c_fc"]}
EMBEDDING = {"gpt2": "wte"}
# What a LoRA brings more, and how people are told of it.
MORE = {
    "DoRA": ({"use_dora": True}, "DoRA", "rank 4"),
    "DoRA of all Linears": ({"use_dora": True, "target_modules": "all-linear"}, "DoRA", "rank 4"),
    "DoRA of other ranks": (
        {"use_dora": True, "use_rslora": True, "rank_pattern": {"LINEAR": 2}},
        "DoRA",
        "rank 4 (others in places)",
    ),
    "head": ({"modules_to_save": ["lm_head"]}, "LoRA", "rank 4", "lm_head"),
    "embedding": ({"modules_to_save": ["EMBEDDING"]}, "LoRA", "rank 4", "EMBEDDING"),
    "DoRA and both": (
        {"use_dora": True, "modules_to_save": ["EMBEDDING", "lm_head"]},
        "DoRA",
        "rank 4",
        "EMBEDDING",
        "lm_head",
    ),
    "tokens": ({"trainable_token_indices": [5, 17, 60]}, "LoRA", "rank 4, own tokens"),
}
UNTIED = {
    "tokens of the head": {"trainable_token_indices": {"lm_head": [60, 5]}},
    "tokens of both": {"trainable_token_indices": {"embed_tokens": [5, 17], "lm_head": [17, 6]}},
    "DoRA of the head": {"use_dora": True, "target_modules": ["q_proj", "lm_head"]},
}
CASES = [(family, name) for family in ("llama", "gemma3", "gpt2") for name in MORE]
CASES += [("llama", name) for name in UNTIED]


def changes_of(family: str, name: str) -> dict:
    changes = MORE[name][0] if name in MORE else UNTIED[name]
    changes = {"target_modules": LINEARS.get(family, ["q_proj", "down_proj"])} | changes
    changes = json.dumps(changes).replace("LINEAR", changes["target_modules"][0])
    return json.loads(changes.replace("EMBEDDING", EMBEDDING.get(family, "embed_tokens")))


def trained(base: nn.Module, config, folder):
    """An adapter whose every number differs from those that it starts with, saved by PEFT."""
    torch.manual_seed(3)
    model = get_peft_model(base, config)
    for key, parameter in model.named_parameters():
        if "magnitude" in key:
            parameter.data.mul_(torch.rand_like(parameter) + 0.5)
        elif "modules_to_save" in key or "trainable_tokens_delta" in key:
            parameter.data.add_(torch.randn_like(parameter) * 0.3)
    model.eval().save_pretrained(folder, save_embedding_layers=False)
    return folder


def assert_rows(base: nn.Module, reference: nn.Module, folder, near: float = 1e-5):
    """The adapter's rows are PEFT's, the base's rows are the base's, and nothing stays when it goes."""
    plain, expected, was = logits(base, IDS), logits(reference, IDS), state(base)
    assert not torch.allclose(expected, plain, atol=1e-2)
    adapter = open_adapter(Folder(folder), describe_base(base))
    open_adapter(Folder(folder), None).delete()
    model = attach(base, adapter, "theirs")
    kept = list(part_tensors(base, "theirs"))
    actual = model(input_ids=IDS, adapter_names=["theirs", "__base__", "theirs"]).logits
    near *= max(1, expected.abs().max().item())
    torch.testing.assert_close(actual[[0, 2]], expected[[0, 2]], atol=near, rtol=near)
    assert torch.equal(actual[1], plain[1])
    assert bytes_by_device(base)[base.device] > sum(t.numel() * t.element_size() for t in base.parameters())
    assert kept and detach(model, "theirs") is base and not list(part_tensors(base))
    assert state(base)["hooks"] == was["hooks"] and torch.equal(logits(base, IDS), plain)
    adapter.delete()
    return adapter


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set", "ignore:Model has `tie_word_embeddings")
@pytest.mark.parametrize(("family", "name"), CASES)
def test_a_row_is_what_peft_makes_of_it(family, name, tmp_path):
    folder = trained(build(family), lora(**changes_of(family, name)), tmp_path)
    adapter = assert_rows(build(family), PeftModel.from_pretrained(build(family), folder), folder)
    if name in MORE:
        title, *words = MORE[name][1:]
        listed = sorted(EMBEDDING.get(family, "embed_tokens") if w == "EMBEDDING" else w for w in words[1:])
        own = [f"own {' and '.join(listed)}"] if listed else []
        assert (adapter.title, adapter.detail) == (title, ", ".join([words[0], *own]))


def biased_llama() -> nn.Module:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_()
    return model.eval()


def test_magnitudes_leave_the_bias_as_it_is(tmp_path):
    folder = trained(biased_llama(), lora(use_dora=True, target_modules="all-linear"), tmp_path)
    assert_rows(biased_llama(), PeftModel.from_pretrained(biased_llama(), folder), folder)


@pytest.mark.parametrize("more", [{"modules_to_save": ["lm_head"]}, {"trainable_token_indices": {"lm_head": [5, 60]}}])
def test_slim_too_may_have_its_own_head_or_tokens(more, tmp_path):
    folder = trained(build("llama"), slim(task_type="CAUSAL_LM", yield_strength=0.0, **more), tmp_path)
    assert_rows(build("llama"), PeftModel.from_pretrained(build("llama"), folder), folder)


def test_rows_of_several_kinds_are_each_their_own(tmp_path):
    """Whatever order they come in: one has its own head, which another adapts."""
    kinds = {
        "dora": lora(use_dora=True, target_modules=["q_proj", "lm_head"]),
        "head": lora(modules_to_save=["lm_head"]),
        "tokens": lora(trainable_token_indices={"lm_head": [5, 60]}),
        "slim": slim(task_type="CAUSAL_LM"),
    }
    expected = {}
    for name, config in kinds.items():
        trained(build("llama"), config, tmp_path / name)
        expected[name] = logits(PeftModel.from_pretrained(build("llama"), tmp_path / name), IDS)[0]
    expected["__base__"] = logits(build("llama"), IDS)[0]
    for order in (list(kinds), list(reversed(kinds))):
        model = build("llama")
        for name in order:
            model = attach(model, open_adapter(Folder(tmp_path / name), describe_base(model)), name)
        rows = ["__base__", "head", "dora", "slim", "tokens", "dora", "__base__"]
        actual = model(input_ids=IDS[:1].expand(len(rows), -1), adapter_names=rows).logits
        for row, name in zip(actual, rows, strict=True):
            torch.testing.assert_close(row, expected[name], atol=1e-5, rtol=1e-5)


def test_a_batch_without_them_computes_nothing_more(tmp_path, monkeypatch):
    folder = trained(build("llama"), lora(use_dora=True, modules_to_save=["lm_head"]), tmp_path)
    base = build("llama")
    assert not any(module._forward_hooks for module in base.modules())
    model = attach(base, open_adapter(Folder(folder), describe_base(base)), "theirs")
    asked = []
    for part in ("Magnitudes", "ReplacedModule"):
        monkeypatch.setattr(
            f"slim_core.adapters.row_parts.{part}._changed", lambda *arguments: asked.append(arguments)
        )
    actual = model(input_ids=IDS, adapter_names=["__base__"] * 3).logits
    assert not asked and torch.equal(actual, logits(build("llama"), IDS))


def test_a_failure_in_the_middle_leaves_no_hook(tmp_path, monkeypatch):
    folder = trained(build("llama"), lora(use_dora=True, modules_to_save=["lm_head"]), tmp_path)
    base = build("llama")
    was = state(base)
    monkeypatch.setattr(
        sys.modules["slim_core.adapters.attach"], "put_tables", lambda *arguments: (_ for _ in ()).throw(MemoryError())
    )
    with pytest.raises(Exception, match="no memory left for this adapter"):
        attach(base, open_adapter(Folder(folder), describe_base(base)), "theirs")
    assert state(base) == was and not list(part_tensors(base))


@pytest.mark.parametrize("kind", ["nf4", "nf4-double"])
@pytest.mark.parametrize("more", [{"use_dora": True}, {"use_dora": True, "modules_to_save": ["lm_head"]}])
def test_on_a_quantised_base_too(kind, more, quantised, tmp_path):
    folder = trained(quantised(kind), lora(target_modules="all-linear", **more), tmp_path)
    assert_rows(quantised(kind), PeftModel.from_pretrained(quantised(kind), folder), folder)


@pytest.fixture(scope="module")
def quantised(tmp_path_factory):
    """Loads a small Llama in 4 bits, whose products no CPU rounds. Its sizes are multiples of the block size."""
    path = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    tiny_llama(vocab_size=128, hidden_size=64, intermediate_size=128, head_dim=16).save_pretrained(path)

    def load(kind: str) -> nn.Module:
        config = BitsAndBytesConfig(**NF4, bnb_4bit_use_double_quant=kind == "nf4-double")
        model = AutoModelForCausalLM.from_pretrained(path, quantization_config=config, device_map="cpu").eval()
        guard_cpu_4bit(model)
        return model

    return load
