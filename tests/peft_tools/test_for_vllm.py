# SPDX-License-Identifier: Apache-2.0
"""A SLIM adapter written as a LoRA for the plugin of vLLM. What the plugin computes from it is in tests/serving."""

from __future__ import annotations

import pytest
import torch
from peft import PeftConfig, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from slim_core.method import SlimConfig
from slim_core.paths import DEMO
from slim_core.peft_tools import export_vllm
from slim_core.peft_tools.for_vllm import MARK


@pytest.fixture
def base():
    return AutoModelForCausalLM.from_pretrained(DEMO / "base")


def test_a_lora_holds_the_experts_the_router_and_the_clusters(base, tmp_path):
    model = PeftModel.from_pretrained(base, DEMO / "slim")
    slim = model.peft_config["default"]
    total, experts, clusters = slim.num_experts * slim.r, slim.num_experts + slim.num_identity, slim.num_clusters
    rank = export_vllm(model, "default", tmp_path)
    config, written = PeftConfig.from_pretrained(tmp_path), load_file(tmp_path / "adapter_model.safetensors")
    saved = load_file(DEMO / "slim" / "adapter_model.safetensors")
    name = "base_model.model.model.layers.1.mlp.gate_proj"
    a, b = written[f"{name}.lora_A.weight"], written[f"{name}.lora_B.weight"]
    assert a.shape == (rank, 192) and b.shape == (512, rank) and a.dtype == b.dtype == torch.float32
    assert config.r == config.lora_alpha == rank
    assert a[0, :5].tolist() == [MARK, slim.num_experts, slim.num_identity, total, clusters]
    columns, rows = saved[f"{name}.slim_columns"], saved[f"{name}.slim_rows"].unsqueeze(1)
    _, first, router, centers, scales, rest = a.split(
        [1, total, experts, clusters, clusters, rank - 1 - total - experts - 2 * clusters]
    )
    assert torch.equal(first, saved[f"{name}.slim_A"].float() * columns)
    assert torch.equal(b[:, 1 : 1 + total], slim.alpha / slim.r * saved[f"{name}.slim_B"].float() * rows)
    assert torch.equal(centers, saved[f"{name}.slim_center"])
    variance = torch.maximum(saved[f"{name}.slim_var"], 0.1 * saved[f"{name}.slim_token_var"])
    torch.testing.assert_close(scales, (variance + 1e-6) ** -0.5)
    assert router.any() and not rest.any() and not b[:, 0].any() and not b[:, 1 + total :].any()
    # Its router is that of gate_proj.
    up = written["base_model.model.model.layers.1.mlp.up_proj.lora_A.weight"]
    assert up[0, :5].tolist() == [MARK, slim.num_experts, slim.num_identity, total, 0] and not up[1 + total :].any()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"distance_scope": "token"}, "plugin for vLLM knows adapters with distance_scope='context' only"),
        ({"yield_mode": "paper"}, "plugin for vLLM knows adapters with yield_mode='gate' only"),
        ({"router_hidden": 4}, "plugin for vLLM knows adapters with router_hidden=0 only"),
        ({"trainable_token_indices": [1]}, "plugin for vLLM knows adapters with trainable_token_indices=None only"),
        ({"merge": "dare"}, 'does not know merge="dare"'),
        ({"num_experts": 1, "num_identity": 0, "top_k": 1}, "with one expert is a plain LoRA"),
        ({"num_clusters": 250}, "up to rank 512, and with its clusters this adapter has 639"),
        ({"turn_opening": list(range(32)), "num_identity": 140}, "has 192 inputs; the plugin for vLLM needs 207"),
    ],
)
def test_what_the_plugin_does_not_know_is_refused(base, tmp_path, settings, says):
    model = PeftModel(base, SlimConfig(target_modules=["up_proj"], **settings))
    with pytest.raises(ValueError, match=says):
        export_vllm(model, "default", tmp_path)
    with pytest.raises(ValueError, match="no SLIM adapter named 'other'"):
        export_vllm(model, "other", tmp_path)
    assert not list(tmp_path.iterdir())
