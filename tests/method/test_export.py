# SPDX-License-Identifier: Apache-2.0
"""Static export: a plain PEFT LoRA that equals the mixture under frozen weights, and an honest report."""

import pytest
import torch
from peft import PeftModel, get_peft_model

from slim_core import SlimConfig, export_lora, trace_routing
from slim_core.method.layer import SlimLayer
from tests.conftest import TINY, build
from tests.method import reference


def slim_model(family="llama", **changes):
    sizes = {"r": 2, "num_experts": 3, "num_identity": 2, "num_clusters": 4, "init_weights": False}
    config = SlimConfig(**({"target_modules": "all-linear"} | sizes | changes))
    model = get_peft_model(build(family), config, "my-slim")
    model.train()(torch.randint(3, 99, (4, 10)))
    return model.eval()


def mean_weights(model, batches):
    """Mean weight of each expert by module, over the tokens that are no padding."""
    collected = {}
    for batch in batches:
        with trace_routing(model) as trace:
            model(**batch)
        for row in trace.rows:
            routing = trace.row(row)
            for i, module in enumerate(routing.modules):
                collected.setdefault(module, []).append(routing.weights[i])
    return {module: torch.cat(parts).mean(0) for module, parts in collected.items()}


@pytest.mark.parametrize("family", [*TINY, "stories"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"merge": "none", "router_scope": "block"},
        {"mask_rate": 0.5, "mask_rescale": True},
        {"alpha": 3.0, "use_rslora": True},
    ],
    ids=str,
)
def test_the_exported_lora_equals_the_mixture_under_frozen_weights(family, changes, tmp_path, ids):
    model = slim_model(family, **changes)
    mask = torch.ones_like(ids)
    mask[0, -4:] = 0
    batches = [{"input_ids": ids, "attention_mask": mask}, {"input_ids": ids[:1]}]
    weights = mean_weights(model, batches)
    export_lora(model, "my-slim", batches, tmp_path)
    lora = PeftModel.from_pretrained(build(family), str(tmp_path))
    for name, layer in model.named_modules():
        if not isinstance(layer, SlimLayer):
            continue
        state, config = reference.layer_state(layer, "my-slim"), layer.slim_config["my-slim"]
        frozen = sum(
            w.double() * layer.scaling["my-slim"] * reference.expert_product(i, state, config)
            for i, w in enumerate(weights[layer.module_name][:3])
        )
        exported = lora.get_submodule(name)
        product = exported.lora_B["default"].weight.double() @ exported.lora_A["default"].weight.double()
        torch.testing.assert_close(product * exported.scaling["default"], frozen, rtol=1e-4, atol=1e-5)


def test_the_report_is_the_divergence_measured_from_outside(tmp_path, ids):
    model = slim_model()
    mask = torch.ones_like(ids)
    mask[2, :6] = 0
    batch = {"input_ids": ids, "attention_mask": mask}
    report = export_lora(model, "my-slim", [batch], tmp_path)
    lora = PeftModel.from_pretrained(build("llama"), str(tmp_path))
    with torch.no_grad():
        p, q = model(**batch).logits.double().log_softmax(-1), lora(**batch).logits.double().log_softmax(-1)
    kl = (p.exp() * (p - q)).sum(-1)[mask.bool()]
    assert report.tokens == 30 == len(kl)
    assert report.mean_kl == pytest.approx(kl.mean().item(), rel=1e-2, abs=1e-6) and report.mean_kl > 0
    assert report.max_kl == pytest.approx(kl.max().item(), rel=1e-2)
    assert report.same_top1 == pytest.approx((p.argmax(-1) == q.argmax(-1))[mask.bool()].double().mean().item())
    assert set(report.weights) == {m.module_name for m in model.modules() if isinstance(m, SlimLayer)}


def test_ranks_that_differ_by_module_are_kept(tmp_path, ids):
    model = slim_model(rank_pattern={"q_proj": 4})
    export_lora(model, "my-slim", [{"input_ids": ids}], tmp_path)
    lora = PeftModel.from_pretrained(build("llama"), str(tmp_path))
    layer = lora.base_model.model.model.layers[0].self_attn
    assert (layer.q_proj.r["default"], layer.v_proj.r["default"]) == (12, 6)
    assert layer.q_proj.scaling["default"] == layer.v_proj.scaling["default"] == 1


def test_modules_trained_whole_are_exported_too(tmp_path, ids):
    model = slim_model(target_modules=["q_proj"], modules_to_save=["lm_head"])
    with torch.no_grad():
        model.base_model.model.lm_head.modules_to_save["my-slim"].weight.add_(0.5)
    export_lora(model, "my-slim", [{"input_ids": ids}], tmp_path)
    lora = PeftModel.from_pretrained(build("llama"), str(tmp_path))
    expected = model.base_model.model.lm_head.modules_to_save["my-slim"].weight
    assert torch.equal(lora.base_model.model.lm_head.modules_to_save["default"].weight, expected)


def test_an_adapter_on_the_output_head_is_exported(tmp_path, ids):
    model = slim_model(target_modules=["q_proj", "lm_head"], distance_scope="token")
    report = export_lora(model, "my-slim", [{"input_ids": ids}], tmp_path)
    lora = PeftModel.from_pretrained(build("llama"), str(tmp_path))
    assert lora.base_model.model.lm_head.lora_A["default"].weight.any() and report.mean_kl > 0


def test_exporting_leaves_the_model_as_it_was(tmp_path, ids):
    model = slim_model()
    before = model(ids).logits
    model.train()
    model.base_model.model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    export_lora(model, "my-slim", [{"input_ids": ids}], tmp_path)
    assert [module.training for module in model.modules()] == modes and list(model.peft_config) == ["my-slim"]
    assert torch.equal(model.eval()(ids).logits, before)


@pytest.mark.parametrize(
    ("changes", "name", "batches", "sentence"),
    [
        ({"merge": "dare"}, "my-slim", 1, 'merge="dare" cannot be exported'),
        ({}, "other", 1, "no SLIM adapter named 'other'"),
        ({}, "my-slim", 0, "needs calibration text"),
    ],
)
def test_what_cannot_be_exported_is_a_sentence(changes, name, batches, sentence, tmp_path, ids):
    model = slim_model(**changes)
    with pytest.raises(ValueError, match=sentence):
        export_lora(model, name, [{"input_ids": ids}] * batches, tmp_path / "out")
    assert not (tmp_path / "out").exists()
