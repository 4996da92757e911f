# SPDX-License-Identifier: Apache-2.0
"""What each method computes at one place, and what it adds to the loss, against slow float64 code."""

import pytest
import torch

from slim_core.baselines.loramoe import sample_types
from tests.baselines import reference
from tests.baselines.small import IDS, TUNED_HERE, adapted, layers, small_base, stir, stirred


GATE, UP, DOWN = "gate_proj", "up_proj", "down_proj"
MLP, QUERY = "model.layers.2.mlp", "model.layers.2.self_attn.q_proj"
SCALE = 2.0  # alpha / r of every method by default


def wide(model):
    """The same in float64, so that nothing but the formula is compared."""
    return model.double()


def inputs(c_in, *shape):
    return torch.randn(*shape, c_in, generator=torch.Generator().manual_seed(8), dtype=torch.float64)


def loramoe(layer, x):
    return reference.loramoe(layer.base_layer.weight, layer.tensors("default"), SCALE, x)


def mola(layer, x):
    return reference.mola(layer.base_layer.weight, layer.tensors("default"), SCALE, x, 2)


def disel(layer, x):
    return reference.disel(layer.base_layer.weight, layer.tensors("default"), SCALE, x)


def attention(layer, x):
    t = layer.tensors("default")
    return layer.base_layer.weight.double() @ x + SCALE * reference.lora(t["A"][0], t["B"][0], x)


def mixture(layer, x, act=reference.silu):
    mlp = layer.base_layer
    weights = {"gate": mlp.gate_proj.weight, "up": mlp.up_proj.weight, "down": mlp.down_proj.weight}
    return reference.mixlora(weights, layer.tensors("default"), SCALE, x, 2, act)


PLACES = {
    "LoRAMoE": ("loramoe", f"{MLP}.{UP}", loramoe),
    "MoLA, 3 experts": ("mola", QUERY, mola),
    "MoLA, 4 experts": ("mola", "model.layers.3.mlp.down_proj", mola),
    "DISeL": ("disel", QUERY, disel),
    "MixLoRA, attention": ("mixlora", QUERY, attention),
    "MixLoRA, MLP": ("mixlora", MLP, mixture),
}


@pytest.mark.parametrize("name", PLACES)
def test_a_place_computes_its_formula(name):
    method, place, formula = PLACES[name]
    layer = layers(wide(stirred(method)))[place]
    x = inputs(layer.place.c_in, 2, 3)
    with torch.no_grad():
        outputs = layer(x)
        for i in range(2):
            for t in range(3):
                # Routers choose in float32.
                assert torch.allclose(outputs[i, t], formula(layer, x[i, t]), rtol=1e-5, atol=1e-6)


def test_the_activation_of_mixlora_is_the_bases():
    layer = layers(wide(stirred("mixlora", small_base(hidden_act="gelu"))))[MLP]
    x = inputs(layer.place.c_in, 1)
    with torch.no_grad():
        output = layer(x)[0]
    assert torch.allclose(output, mixture(layer, x[0], reference.gelu), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(output, mixture(layer, x[0]), rtol=1e-2)


def test_mola_has_more_experts_in_later_blocks():
    model = adapted("mola")
    numbers = [layers(model)[f"model.layers.{i}.self_attn.q_proj"].tensors("default")["A"].shape[0] for i in range(4)]
    # A quarter, a half, three quarters and all of 4, but at least the two that are kept.
    assert numbers == [2, 2, 3, 4] and model.peft_config["default"].num_experts == [2, 2, 3, 4]


def test_dynamic_merging_drops_rows_and_columns_of_each_expert_apart():
    layer = layers(wide(stirred("mixlora-dy", mask_rate=0.5)))[MLP]
    t = layer.tensors("default")
    kept = layer.experts["default"].prepared(t)
    for part in ("gate", "up", "down"):
        columns, rows = kept[f"{part}_A"] != 0, kept[f"{part}_B"] != 0
        assert (columns == columns[:, :1]).all() and (rows == rows[:, :, :1]).all()
        assert len({tuple(c.tolist()) for c in columns[:, 0]}) == len(columns), "each expert has its own columns"
        assert torch.equal(kept[f"{part}_A"][columns], t[f"{part}_A"][columns])
    x = inputs(layer.place.c_in, 1)
    mlp = layer.base_layer
    weights = {"gate": mlp.gate_proj.weight, "up": mlp.up_proj.weight, "down": mlp.down_proj.weight}
    with torch.no_grad():
        assert torch.allclose(layer(x)[0], reference.mixlora(weights, kept, SCALE, x[0], 2), rtol=1e-5, atol=1e-6)


def test_merging_keeps_the_share_that_is_configured_and_rescaling_restores_the_mean():
    """An entry of a product survives with probability 1 - p."""
    layer = layers(adapted("mixlora-dy", mask_rate=0.36, mask_rescale=True, init_weights=False))[MLP]
    experts, t = layer.experts["default"], layer.tensors("default")
    ones = {key: torch.ones_like(tensor) for key, tensor in t.items()}
    torch.manual_seed(0)
    shares = []
    for _ in range(200):
        kept = experts._merged(ones, learning=True)
        shares.append((kept["up_B"] @ kept["up_A"]).ne(0).float().mean())
    assert abs(torch.stack(shares).mean().item() - 0.64) < 0.02
    assert experts._scale == pytest.approx(SCALE / 0.64)


# -- losses ------------------------------------------------------------------------------------------------------

MASK = torch.ones_like(IDS)
MASK[0, 9:] = MASK[2, :2] = 0


def seen_by(model, place, ids=IDS, mask=MASK):
    """What a place reads of tokens that are no padding, by sample."""
    kept = []
    handle = layers(model)[place].register_forward_pre_hook(lambda module, args: kept.append(args[0].detach()))
    with torch.no_grad():
        model.eval()(input_ids=ids, attention_mask=mask)
    handle.remove()
    return [row[m.bool()] for row, m in zip(kept[0], mask, strict=True)]


def added_by_training(model):
    """What a training forward's loss has beyond the task's."""
    labels = IDS.masked_fill(MASK == 0, -100)
    with torch.no_grad():
        model.eval()
        plain = model(input_ids=IDS, attention_mask=MASK, labels=labels).loss
    loss = model.train()(input_ids=IDS, attention_mask=MASK, labels=labels).loss
    return (loss - plain).item(), loss


@pytest.mark.parametrize("types", [None, [1, 0, 1]], ids=["kinds unknown", "two kinds"])
def test_the_localised_balance_of_loramoe(types):
    model = stirred("loramoe", balance_coefficient=0.5, balance_offset=0.2)
    expected = 0.0
    for place, layer in layers(model).items():
        router = layer.tensors("default")["router"]
        gates = [[reference.route(router, x) for x in row] for row in seen_by(model, place)]
        expected += 0.5 * reference.localised_balance(gates, types, 0.2)
    if types is None:
        added, loss = added_by_training(model)
    else:
        with sample_types(model, torch.tensor(types)):
            added, loss = added_by_training(model)
    assert added == pytest.approx(expected, rel=1e-4)
    loss.backward()
    assert layers(model)[f"{MLP}.{UP}"].tensors("default")["router"].grad.abs().sum() > 0


def test_the_balance_of_loramoe_is_in_its_loss_unless_it_is_switched_off():
    added, _ = added_by_training(stirred("loramoe"))
    whole, _ = added_by_training(stirred("loramoe", balance_coefficient=1.0))
    assert added == pytest.approx(0.01 * whole, rel=1e-3) and added > 1e-4
    off, _ = added_by_training(stirred("loramoe", balance_coefficient=0.0))
    assert off == 0


def routed(model, place, k):
    router = layers(model)[place].tensors("default")["router"]
    p = [reference.route(router, x) for row in seen_by(model, place) for x in row]
    return [list(reference.best(token, k)) for token in p], p


def test_the_balance_of_mixlora_counts_the_tokens_of_all_blocks_together():
    model = stirred("mixlora", balance_coefficient=0.5)
    chosen, p = [], []
    for block in range(4):
        of_block = routed(model, f"model.layers.{block}.mlp", 2)
        chosen += of_block[0]
        p += of_block[1]
    added, _ = added_by_training(model)
    assert added == pytest.approx(0.5 * reference.balance(chosen, p, 4, divide_by_k=False), rel=1e-4)


def test_the_balance_of_mola_is_a_sum_over_blocks():
    model = stirred("mola", balance_coefficient=0.5, num_experts=[3, 4], top_k=2)
    expected = 0.0
    for block in range(4):
        chosen, p = [], []
        for place in layers(model):
            if f"layers.{block}." in place:
                of_linear = routed(model, place, 2)
                chosen += of_linear[0]
                p += of_linear[1]
        expected += 0.5 * reference.balance(chosen, p, 3 if block < 2 else 4, divide_by_k=True)
    added, _ = added_by_training(model)
    assert added == pytest.approx(expected, rel=1e-4)


def test_the_l1_of_mixlora_dy():
    model = stirred("mixlora-dy", balance_coefficient=0.0, l1_coefficient=0.5, mask_rate=0.01)
    l1 = 0.0
    for layer in layers(model).values():
        for key, tensor in layer.tensors("default").items():
            if key != "router":
                l1 += sum(float(expert.double().abs().sum()) / expert.numel() for expert in tensor)
    model.train()
    labels = IDS.clone()
    torch.manual_seed(0)
    with_l1 = model(input_ids=IDS, labels=labels).loss
    model.peft_config["default"].l1_coefficient = 0.0
    torch.manual_seed(0)
    without = model(input_ids=IDS, labels=labels).loss
    assert (with_l1 - without).item() == pytest.approx(0.5 * l1, rel=1e-4)


def test_losses_are_added_once_over_accumulated_forwards():
    """Two forwards of one optimiser step that are told how many labels it has: one balance loss in all."""
    model = stirred("mixlora", balance_coefficient=0.5).train()
    once = model(input_ids=IDS, labels=IDS, num_items_in_batch=torch.tensor(33)).loss
    once.backward()
    gradients = {
        name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None and "router" in name
    }
    model.zero_grad()
    for _ in range(2):
        model(input_ids=IDS, labels=IDS, num_items_in_batch=torch.tensor(66)).loss.backward()
    for name, p in model.named_parameters():
        if name in gradients:
            assert torch.allclose(p.grad, gradients[name], rtol=1e-4, atol=1e-7), name


def test_nothing_is_added_where_no_labels_are_given_or_the_adapter_is_frozen():
    model = stirred("mixlora", balance_coefficient=0.5)
    model.train()
    assert model(input_ids=IDS).loss is None
    model.requires_grad_(False)
    frozen = model(input_ids=IDS, labels=IDS).loss
    assert torch.equal(frozen, model.eval()(input_ids=IDS, labels=IDS).loss)


def test_disels_gates_begin_nearly_closed_and_its_router_weights_are_random():
    tensors = layers(adapted("disel"))[QUERY].tensors("default")
    assert (tensors["gate_bias"] == -3).all() and tensors["gate"].std() > 0.05 and (tensors["B"] == 0).all()


def test_experts_begin_with_the_spread_of_a_linear_layer():
    """Of the inputs alone: by the shape of a stack torch would count the rank too."""
    model = adapted("loramoe")
    tensors = layers(model)[f"{MLP}.{DOWN}"].tensors("default")
    bound = 1 / 48**0.5
    assert tensors["A"].abs().max() <= bound and tensors["A"].abs().max() > 0.9 * bound


def test_stirring_reaches_every_tensor():
    """The other tests would prove nothing about what stays 0."""
    for method in TUNED_HERE:
        model = adapted(method)
        stir(model)
        assert all((t != 0).any() for layer in layers(model).values() for t in layer.tensors("default").values())
