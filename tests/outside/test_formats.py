# SPDX-License-Identifier: Apache-2.0
"""Other formats than PEFT's are named, with the way out."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from slim_core.adapters import AdapterError, Folder, check
from slim_core.outside.formats import check_contents, check_file_names, conversion


PEFT_NAME = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
MLX, MODEL = "an MLX adapter, not a PEFT adapter: .*", "this is a whole model, .*: choose it as the base"
SHARDS, GGUF = "in several shards: .* save it again", "this is GGUF, .*: use the adapter as it was"
PICTURES, KOHYA = "a LoRA for images .*: use one", "these are Kohya's names, .*: rename"

FILES = {
    "shards": (["adapter_model-00001-of-00002.safetensors", "adapter_config.json"], SHARDS),
    "an index": (["model.safetensors.index.json", "config.json"], SHARDS),
    "pickled shards": (["pytorch_model-00001-of-00002.bin"], SHARDS),
    "MLX with its checkpoints": (["adapters.safetensors", "0000100_adapters.safetensors", "adapter_config.json"], MLX),
    "an old MLX": (["adapters.npz", "adapter_config.json"], MLX),
    "GGUF": (["adapter.gguf", "adapter_config.json"], GGUF),
    "a whole model": (["model.safetensors", "config.json", "tokenizer.json"], MODEL),
    "a pickled model": (["pytorch_model.bin", "config.json"], MODEL),
    "PEFT's": (["adapter_model.safetensors", "adapter_config.json", "model.safetensors", "x.gguf"], None),
    "PEFT's, under another name": (["lora.safetensors", "adapter_config.json"], None),
}
CONTENTS = {
    "MLX": ({}, ["model.layers.0.self_attn.q_proj.lora_a"], MLX),
    "MLX's config": ({"lora_parameters": {"rank": 8}, "num_layers": 8}, ["x"], MLX),
    "Kohya's U-Net": ({}, ["lora_unet_down_blocks_0.lora_down.weight"], PICTURES),
    "Kohya's alpha": ({}, ["lora_unet_down_blocks_0.alpha"], PICTURES),
    "Kohya's text encoder": ({}, ["lora_te_text_model_encoder_layers_0.lora_up.weight"], PICTURES),
    "SDXL's second encoder": ({}, ["lora_te2_text_model.lora_up.weight"], PICTURES),
    "Diffusers": ({}, ["unet.down_blocks.0.attn1.to_q.lora_A.weight"], PICTURES),
    "its text encoder": ({}, ["text_encoder.text_model.q_proj.lora_A.weight"], PICTURES),
    "down and up": ({}, ["model.layers.0.self_attn.q_proj.lora_down.weight"], KOHYA),
    "a whole Llama": ({"peft_type": "LORA"}, ["lm_head.weight", "model.layers.0.mlp.up_proj.weight"], MODEL),
    "a whole GPT-2": ({"model_type": "gpt2"}, ["h.0.attn.c_attn.weight", "wte.weight"], MODEL),
    "a model's config": ({"architectures": ["X"], "model_type": "x"}, ["x"], MODEL),
    "PEFT's": ({"peft_type": "LORA"}, [PEFT_NAME], None),
    "PEFT's with a head": ({"peft_type": "LORA"}, ["base_model.model.lm_head.weight", PEFT_NAME], None),
    "PEFT's without its kind": ({"r": 8}, [PEFT_NAME], None),
}


def named(words: str | None, call) -> None:
    if words is None:
        call()
        return
    with pytest.raises(AdapterError) as refused:
        call()
    sentence = str(refused.value)
    assert re.search(words, sentence) and sentence.isprintable() and sentence.endswith("."), sentence


@pytest.mark.parametrize(("names", "words"), FILES.values(), ids=FILES)
def test_a_format_is_known_by_its_files(names, words):
    named(words, lambda: check_file_names(names))


@pytest.mark.parametrize(("raw", "names", "words"), CONTENTS.values(), ids=CONTENTS)
def test_a_format_is_known_by_what_is_in_it(raw, names, words):
    named(words, lambda: check_contents(raw, names, ("lora_", "slim_")))


def test_a_folder_of_mlx_is_named(tmp_path):
    save_file({"model.layers.0.self_attn.q_proj.lora_a": torch.ones(32, 4)}, tmp_path / "adapters.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"lora_parameters": {"rank": 4}}')
    last = list(check(Folder(tmp_path), None))[-1]
    assert (last.name, last.state) == ("format", "failed") and "MLX adapter" in last.sentence


@pytest.mark.parametrize("name", ["adapter_model.bin", "lora.pt"])
def test_the_line_that_converts_a_pickle_does(name, tmp_path):
    tensor = torch.arange(6.0).view(2, 3)
    torch.save({PEFT_NAME: tensor.T, "same": tensor}, tmp_path / name)
    code = re.search(r'python -c "([^"]*)"\.\Z', conversion(name))[1]
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=120)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert torch.equal(tensors[PEFT_NAME], tensor.T) and torch.equal(tensors["same"], tensor)


@pytest.mark.parametrize("name", ["a'; rm -rf x; '.bin", '"$(x)".pt', "a b.bin", "-rf.bin", "../x.bin"])
def test_no_name_from_outside_gets_into_the_line_that_converts(name):
    line = conversion(name).partition("convert it with: ")[2]
    assert name not in line and "adapter_model.bin" in line
