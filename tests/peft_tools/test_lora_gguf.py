# SPDX-License-Identifier: Apache-2.0
"""A LoRA as a GGUF file: its tensors are PEFT's. That llama.cpp writes the same tokens: `test_llama_cpp.py`."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from slim_core.peft_tools import lora_to_gguf
from tests.adapters.small import lora
from tests.conftest import SIZES, TINY


pytest.importorskip("gguf", reason='needs gguf: pip install "slim-core[gguf]"')

from tests.peft_tools.gguf_files import interleaved, read_gguf


FAMILIES = {
    "gemma": lambda: GemmaForCausalLM(GemmaConfig(**SIZES)),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**SIZES)),
    "gemma3": TINY["gemma3"],
    "llama": TINY["llama"],
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**{k: v for k, v in SIZES.items() if k != "head_dim"})),
    "qwen3": TINY["qwen3"],
}
# llama.cpp's name of each Linear of a block.
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def adapted(base, **changes) -> tuple[PeftModel, LoraConfig, dict[str, torch.Tensor]]:
    torch.manual_seed(3)
    model = get_peft_model(base.eval(), lora(**changes))
    return model, model.peft_config["default"], get_peft_model_state_dict(model, save_embedding_layers=False)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_file_has_the_tensors_of_peft(family, tmp_path):
    base = FAMILIES[family]()
    _, config, state = adapted(base, target_modules="all-linear")
    lora_to_gguf(config, state, base.config, tmp_path / "a.gguf")
    fields, tensors = read_gguf(tmp_path / "a.gguf")
    assert fields["general.type"] == "adapter" and fields["adapter.type"] == "lora"
    assert fields["adapter.lora.alpha"] == 8.0
    assert fields["general.architecture"] == {"mistral": "llama"}.get(family, family)
    turns = family in ("llama", "mistral")
    heads = {"self_attn.q_proj": 4, "self_attn.k_proj": 2} if turns else {}
    expected = {}
    for block in range(2):
        for module, name in NAMES.items():
            key = f"base_model.model.model.layers.{block}.{module}.lora_"
            a, b = state[f"{key}A.weight"], state[f"{key}B.weight"]
            expected[f"blk.{block}.{name}.weight.lora_a"] = a
            expected[f"blk.{block}.{name}.weight.lora_b"] = interleaved(b, heads[module]) if module in heads else b
    assert tensors.keys() == expected.keys() and len(tensors) == 28
    for name, tensor in tensors.items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize(
    "changes",
    [
        {"lora_alpha": 3},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 6}},
        {"alpha_pattern": {"layers.1.self_attn.v_proj": 5}},
        {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"q_proj": 1}, "use_rslora": True},
    ],
    ids=str,
)
def test_each_linear_is_scaled_as_in_peft(changes, tmp_path):
    """llama.cpp multiplies B A by alpha and divides it by the number of rows of A."""
    base = TINY["llama"]()
    model, config, state = adapted(base, **changes)
    lora_to_gguf(config, state, base.config, tmp_path / "a.gguf")
    fields, tensors = read_gguf(tmp_path / "a.gguf")
    for block in range(2):
        for module, name in (("q_proj", "attn_q"), ("v_proj", "attn_v")):
            a, b = (tensors[f"blk.{block}.{name}.weight.lora_{which}"] for which in "ab")
            layer = model.base_model.model.model.layers[block].self_attn.get_submodule(module)
            update = layer.get_delta_weight("default").detach()
            expected = interleaved(update, 4) if module == "q_proj" else update
            torch.testing.assert_close(b @ a * fields["adapter.lora.alpha"] / len(a), expected)


def test_half_precision_becomes_float32(tmp_path):
    base = TINY["llama"]()
    _, config, state = adapted(base, target_modules=["down_proj"])
    state = {key: tensor.bfloat16() for key, tensor in state.items()}
    lora_to_gguf(config, state, base.config, tmp_path / "a.gguf")
    _, tensors = read_gguf(tmp_path / "a.gguf")
    key = "base_model.model.model.layers.1.mlp.down_proj.lora_A.weight"
    assert torch.equal(tensors["blk.1.ffn_down.weight.lora_a"], state[key].float())


@pytest.mark.parametrize(
    ("family", "changes", "sentence"),
    [
        ("gpt2", {"target_modules": ["c_attn"]}, "How llama.cpp orders the weights of a gpt2 base is not known here"),
        (
            "llama",
            {"use_dora": True},
            "This LoRA sets `use_dora` to True, which an adapter of llama.cpp cannot",
        ),
        (
            "llama",
            {"modules_to_save": ["lm_head"]},
            "`base_model.model.lm_head.weight` is not part of a LoRA",
        ),
        ("llama", {"trainable_token_indices": [1, 2]}, "token_adapter.trainable_tokens_delta` is not part of a LoRA"),
        ("gemma3", {"target_modules": ["lm_head"]}, "llama.cpp has no weight of its own for lm_head of a gemma3_text"),
    ],
)
def test_what_the_format_cannot_hold_is_refused(family, changes, sentence, tmp_path):
    base = TINY[family]()
    _, config, state = adapted(base, **changes)
    with pytest.raises(ValueError) as refused:
        lora_to_gguf(config, state, base.config, tmp_path / "a.gguf")
    assert sentence in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    import gguf

    def full(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    base = TINY["llama"]()
    _, config, state = adapted(base)
    monkeypatch.setattr(gguf.GGUFWriter, "write_tensors_to_file", full)
    with pytest.raises(OSError):
        lora_to_gguf(config, state, base.config, tmp_path / "a.gguf")
    assert list(tmp_path.iterdir()) == []
