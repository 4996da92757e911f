# SPDX-License-Identifier: Apache-2.0
"""The same seed gives the same training and the same answers; masks change where they should and nowhere else."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor

from slim_core import SlimConfig
from slim_core.method import SlimLayer
from tests.conftest import build
from tests.method import reference


def adapt(**changes) -> PeftModel:
    start = {"r": 2, "num_experts": 3, "num_clusters": 4, "init_weights": False, "mask_rate": 0.4}
    torch.manual_seed(0)
    return get_peft_model(build("llama"), SlimConfig(**(start | {"yield_strength": 0.1} | changes)))


def layers(model: PeftModel) -> dict[str, SlimLayer]:
    return {name: module for name, module in model.named_modules() if isinstance(module, SlimLayer)}


def state(model: PeftModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items() if "slim_" in name}


def train(model: PeftModel, ids: Tensor, seed: int, steps: int = 2) -> PeftModel:
    torch.manual_seed(seed)
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(steps):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    assert left.keys() == right.keys()
    return all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("changes", [{"merge": "fast", "dropout": 0.2}, {"merge": "dare"}], ids=["fast", "dare"])
def test_the_same_seed_trains_the_same_adapter_bit_for_bit(changes, ids):
    first, again, other = (state(train(adapt(**changes), ids, seed)) for seed in (1, 1, 2))
    assert same(first, again)
    assert not same(first, other)


@pytest.mark.parametrize("merge", ["fast", "dare"])
def test_evaluation_gives_the_same_answer_whatever_the_seed(merge, ids):
    model = train(adapt(merge=merge, dropout=0.2), ids, seed=1)
    answers = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        answers.append(model(input_ids=ids).logits)
    assert torch.equal(*answers)
    model.train()
    answers = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        with torch.no_grad():
            answers.append(model(input_ids=ids).logits)
    assert not torch.allclose(*answers, atol=1e-3)


@pytest.mark.parametrize("merge", ["fast", "dare"])
def test_evaluation_draws_nothing_from_the_global_generator(merge, ids):
    model = train(adapt(merge=merge, dropout=0.2), ids, seed=1)
    before = torch.get_rng_state()
    model(input_ids=ids)
    assert torch.equal(torch.get_rng_state(), before)


def masks(model: PeftModel) -> dict[str, Tensor]:
    """Inference masks by tensor name."""
    return {k: v for k, v in model.state_dict().items() if "slim_columns" in k or "slim_rows" in k}


def test_inference_masks_are_those_of_the_seed_on_every_construction():
    first, again, other = masks(adapt()), masks(adapt()), masks(adapt(mask_seed=1))
    assert len(first) == 2 * 14
    assert same(first, again)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_inference_masks_differ_between_modules():
    by_module = masks(adapt())
    by_size = {}
    for mask in by_module.values():
        by_size.setdefault(len(mask), []).append(tuple(mask.tolist()))
    assert sum(map(len, by_size.values())) == 28
    for size, drawn in by_size.items():
        # 16 channels can agree by chance; more cannot.
        assert len(set(drawn)) == len(drawn) or size <= 16


@pytest.mark.parametrize("merge", ["fast", "dare"])
def test_a_reloaded_adapter_has_the_same_masks_and_answers(merge, ids, tmp_path):
    model = train(adapt(merge=merge, mask_seed=3), ids, seed=1)
    model.save_pretrained(tmp_path)
    torch.manual_seed(9)
    loaded = PeftModel.from_pretrained(build("llama"), tmp_path)
    assert same(masks(loaded), masks(model))
    assert torch.equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits)


SINGLE = {"num_experts": 1, "num_identity": 0, "top_k": 1}  # nothing is routed, so only masks can change an answer


def dropped_entries(model: PeftModel) -> list[Tensor]:
    """(C_out, C_in) bool for each down projection: the entries of its product that are dropped at inference."""
    dropped = []
    for name, layer in layers(model.eval()).items():
        if "down_proj" in name:
            rows = torch.eye(layer.in_features)
            dropped.append((layer(rows) - layer.base_layer(rows) == 0).t())
    return dropped


def test_exact_masks_differ_between_modules_and_seeds_and_not_between_constructions():
    first, again, other = (dropped_entries(adapt(merge="dare", mask_seed=seed, **SINGLE)) for seed in (0, 0, 1))
    assert all(mask.float().mean().item() == pytest.approx(0.4, abs=0.05) for mask in first)
    assert all(map(torch.equal, first, again))
    assert not torch.equal(*first)
    assert not any(map(torch.equal, first, other))


@pytest.mark.parametrize("merge", ["fast", "dare"])
def test_training_masks_differ_from_step_to_step(merge, ids):
    model = adapt(merge=merge, target_modules=["down_proj"], layers_to_transform=[1], **SINGLE).train()
    (layer,) = layers(model).values()
    gradients = []
    for _ in range(3):
        model(input_ids=ids, labels=ids).loss.backward()
        gradients.append(layer.slim_A["default"].grad.clone())
        model.zero_grad()
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert not torch.allclose(gradients[i], gradients[j], rtol=0.1)
    if merge == "fast":
        # A dropped column of A gets no gradient.
        assert len({tuple((grad == 0).all(0).tolist()) for grad in gradients}) == 3


@pytest.mark.parametrize("scope", ["context", "token"])
def test_gradient_accumulation_slides_the_clusters_once_per_forward(scope, ids):
    model = adapt(merge="none", cluster_init="random", cluster_momentum=0.5, distance_scope=scope).train()
    name, layer = next(iter(layers(model).items()))
    inputs = []

    def see(_, args):
        x = args[0].detach()
        inputs.append((x if scope == "token" else reference.batch_contexts(x)[0]).flatten(0, 1))

    layer.register_forward_pre_hook(see)
    center, var = layer.slim_center["default"].clone(), layer.slim_var["default"].clone()
    for part in range(4):
        (model(input_ids=ids + part % 2, labels=ids).loss / 4).backward()
        assert len(inputs) == part + 1
        center, var = reference.slide(center, var, inputs[-1], 0.5)
    after = state(model)
    torch.testing.assert_close(after[f"{name}.slim_center.default"].double(), center, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(after[f"{name}.slim_var.default"].double(), var, atol=1e-5, rtol=1e-4)
    assert int(after[f"{name}.slim_count.default"].sum()) == 4 * ids.numel()


def test_asking_for_the_state_again_moves_nothing(ids):
    model = adapt().train()
    model(input_ids=ids)
    first, again = state(model), state(model)
    assert same(first, again)
    model.eval()(input_ids=ids)
    assert same(state(model), first)
