# SPDX-License-Identifier: Apache-2.0
"""What must hold for SLIM on random layers, small models of four families, and a real small model."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from slim_core import SlimConfig, trace_routing
from slim_core.method.context import ForwardContext
from slim_core.method.layer import SlimLayer
from slim_core.method.linear import Linear
from tests.conftest import TINY, build
from tests.method import reference
from tests.method.small import made_once, router_layer


FAMILIES = [*TINY, "stories"]
VARIANTS = {
    "default": {},
    "warm-up": {"context_warmup": 3},
    "calibrated": {"yield_mode": "calibrated", "yield_quantile": 0.6},
    "the largest channel": {"distance": "max", "yield_quantile": 0.97},
    "tokens": {"distance_scope": "token"},
    "tokens, calibrated": {"distance_scope": "token", "yield_mode": "calibrated", "distance": "max"},
    "the paper's": {"distance_scope": "token", "yield_mode": "paper", "yield_strength": 1.0, "distance": "max"},
    "no merging": {"merge": "none"},
    "heavy merging": {"mask_rate": 0.6, "mask_rescale": True},
    "hidden router": {"router_hidden": 5},
    "hidden router, tokens": {"router_hidden": 5, "distance_scope": "token", "router_scope": "block"},
    "block router": {"router_scope": "block"},
    "one identity": {"num_identity": 1, "top_k": 3},
    "no identity": {"num_identity": 0},
    "all kept": {"top_k": 5},
    "two clusters": {"num_clusters": 2, "use_rslora": True},
}


def slim_config(**changes) -> SlimConfig:
    sizes = {"r": 2, "num_experts": 3, "num_identity": 2, "num_clusters": 4, "init_weights": False}
    # A layer that is called by itself takes every token for the first of a context.
    return SlimConfig(**(sizes | {"context_warmup": 0} | changes), target_modules="all-linear")


def words(family: str, ids: torch.Tensor) -> torch.Tensor:
    """The same ids, of tokens that the model knows: the real one has never seen its first hundred, and embeds them
    all alike."""
    return ids + 300 if family == "stories" else ids


@made_once
def trained(family: str, **changes) -> PeftModel:
    """A model whose SLIM adapter has seen data: clusters, router and factors are all at work."""
    model = get_peft_model(build(family), slim_config(**changes))
    model.train()
    generator = torch.Generator().manual_seed(3)
    # The real model's gradients are large.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01 if family == "stories" else 0.1)
    for _ in range(3):
        ids = words(family, torch.randint(3, 99, (4, 16), generator=generator))
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "slim_router" in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    return model.eval()


def layers_with_inputs(model, **batch):
    """Every SLIM layer's input and output in one forward."""
    seen = []
    handles = [
        m.register_forward_hook(lambda m, args, out: seen.append((m, args[0].detach(), out.detach())))
        for m in model.modules()
        if isinstance(m, SlimLayer)
    ]
    with torch.no_grad():
        model(**batch)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_layer_of_a_model_equals_the_slow_formulas(variant, ids):
    model = trained("llama", **VARIANTS[variant])
    seen = layers_with_inputs(model, input_ids=ids[:1])
    assert len(seen) == 14
    below = reference.Below()
    for layer, x, out in seen:
        state = reference.layer_state(layer, "default")
        owner = router_layer(layer, model)
        if "router" not in state:  # a sibling that read the same tensor owns the router
            shared = reference.layer_state(owner, "default")
            state |= {name: tensor for name, tensor in shared.items() if name not in state}
        with torch.no_grad():
            base = layer.base_layer(x)[0].double()
        config = layer.slim_config["default"]
        delta = reference.slim_delta(x[0], state, config, layer.scaling["default"], None, below, owner)
        expected = base + delta
        torch.testing.assert_close(out[0].double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scope", ["context", "token"])
@pytest.mark.parametrize("family", FAMILIES)
def test_layers_of_every_family_equal_the_slow_formulas(family, scope, ids):
    model = trained(family, distance_scope=scope)
    below = reference.Below()
    for layer, x, out in layers_with_inputs(model, input_ids=words(family, ids[:1, :6])):
        with torch.no_grad():
            base = layer.base_layer(x)[0].double()
        state = reference.layer_state(layer, "default")
        config, scaling = layer.slim_config["default"], layer.scaling["default"]
        expected = base + reference.slim_delta(x[0], state, config, scaling, None, below, layer)
        torch.testing.assert_close(out[0].double(), expected, rtol=3e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_new_adapter_changes_nothing(family, ids):
    model = build(family)
    expected = model(ids).logits
    adapted = get_peft_model(model, slim_config(init_weights=True))
    assert torch.equal(adapted.eval()(ids).logits, expected)
    assert torch.equal(adapted.train()(input_ids=ids).logits, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_disabling_restores_the_base_bit_for_bit(family, ids):
    expected = build(family)(ids).logits
    model = trained(family)
    assert not torch.equal(model(ids).logits, expected)
    with model.disable_adapter():
        assert torch.equal(model(ids).logits, expected)


@pytest.mark.parametrize(
    ("family", "variant"), [(f, "default") for f in FAMILIES] + [("llama", v) for v in VARIANTS if v != "default"]
)
def test_evaluation_is_repeatable(family, variant, ids):
    model = trained(family, **VARIANTS[variant])
    assert torch.equal(model(ids).logits, model(ids).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_alone_equals_the_row_in_a_batch(family, ids):
    model, ids = trained(family), words(family, ids)
    together = model(ids).logits
    for row in range(3):
        torch.testing.assert_close(model(ids[row : row + 1]).logits[0], together[row], rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_padding_changes_nothing(family, side, ids):
    model, ids = trained(family), words(family, ids)
    alone = model(ids[:1]).logits[0]
    pad = torch.full((1, 5), 1)
    padded = torch.cat([pad, ids[:1]] if side == "left" else [ids[:1], pad], dim=1)
    mask = torch.ones_like(padded)
    mine = slice(5, None) if side == "left" else slice(0, 12)
    mask[:, : 5 if side == "left" else None] = 0
    mask[:, mine] = 1
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    logits = model(input_ids=padded, attention_mask=mask, position_ids=positions).logits[0, mine]
    torch.testing.assert_close(logits, alone, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize(
    ("family", "variant"),
    [(f, "default") for f in FAMILIES]
    + [("llama", v) for v in VARIANTS if v != "default"]
    + [pytest.param("stories", v, marks=pytest.mark.nightly) for v in VARIANTS if v != "default"],
)
def test_prefill_equals_decoding_token_by_token(family, variant, ids):
    model, ids = trained(family, **VARIANTS[variant]), words(family, ids)
    whole = model(ids[:2]).logits
    cache, steps = None, []
    for t in range(ids.shape[1]):
        out = model(input_ids=ids[:2, t : t + 1], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        steps.append(out.logits)
    # Rounding errors grow with the logits, and with the real model's small variances.
    tolerance = (5e-3 if family == "stories" else 1e-4) * whole.abs().max().item()
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, rtol=1e-4, atol=tolerance)


def random_layer(**changes) -> Linear:
    config = slim_config(**changes)
    layer = Linear(nn.Linear(24, 20), "default", config, config.r, config.alpha, ForwardContext(), "layer")
    layer.train()
    layer(torch.randn(100, 24))
    return layer.eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_gate_gives_far_tokens_the_base_output_in_every_layer_of_a_model(family):
    for layer in (m for m in trained(family).modules() if isinstance(m, SlimLayer)):
        # However steep the router is.
        layer.slim_router["default"].data.mul_(100)
        x = 1e4 * torch.randn(20, layer.in_features)
        assert torch.equal(layer(x), layer.base_layer(x)), layer.module_name


@pytest.mark.parametrize("family", FAMILIES)
def test_a_router_that_is_less_steep_than_the_yielding_gives_far_tokens_the_base_output(family):
    model = trained(family, distance_scope="token", yield_mode="calibrated", distance="max")
    for layer in (m for m in model.modules() if isinstance(m, SlimLayer)):
        config, weight = layer.slim_config["default"], layer.slim_router["default"]
        lora, identity = weight.detach().split([config.num_experts, config.num_identity])
        slopes = lora[:, None] - identity
        # A logit grows by at most the sum of |slopes| where the distance grows by one. Up to `yield_strength`, no
        # direction leads to LoRA; beyond it the steepest one does.
        with torch.no_grad():
            weight.mul_(min(1.0, 0.9 * config.yield_strength / slopes.abs().sum(-1).max()))
        x = 1e4 * torch.cat([torch.randn(20, layer.in_features), slopes.sign().flatten(0, 1)])
        assert torch.equal(layer(x), layer.base_layer(x)), layer.module_name


def test_a_router_that_is_steeper_than_the_yielding_sends_far_tokens_of_its_direction_to_lora():
    layer = random_layer(distance="max", distance_scope="token", yield_mode="calibrated")
    weight = layer.slim_router["default"]
    slope = (weight[0] - weight[3:]).detach()
    with torch.no_grad():
        weight.mul_(2 * layer.slim_config["default"].yield_strength / slope.abs().sum(-1).min())
    x = 1e4 * slope.sum(0).sign()[None]
    assert not torch.equal(layer(x), layer.base_layer(x))


@pytest.mark.parametrize("family", FAMILIES)
def test_saving_and_loading_is_bit_equal(family, tmp_path, ids):
    model = trained(family)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(build(family), str(tmp_path), adapter_name="again")
    assert torch.equal(loaded(ids).logits, model(ids).logits)


@pytest.mark.parametrize("mode", ["gate", "paper", "calibrated"])
@pytest.mark.parametrize("distance", ["max", "rms"])
@pytest.mark.parametrize("scope", ["context", "token"])
def test_far_tokens_get_the_base_output(scope, distance, mode):
    layer = random_layer(yield_mode=mode, distance=distance, distance_scope=scope)
    # A router that likes LoRA: near the clusters LoRA answers, far from them it yields all the same.
    layer.slim_router_bias["default"].data[:3] += 20
    near, direction = torch.randn(50, 24), torch.randn(50, 24)
    moved = [(layer(x) - layer.base_layer(x)).norm() for x in (near, 1000 * direction)]
    assert moved[0] > 1
    assert moved[1] == 0
    assert torch.equal(layer(1000 * direction), layer.base_layer(1000 * direction))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_single_expert_without_merging_is_pefts_lora(family, ids):
    lora = get_peft_model(
        build(family), LoraConfig(r=4, lora_alpha=6, target_modules="all-linear", init_lora_weights=False)
    ).eval()
    slim = get_peft_model(
        build(family), slim_config(r=4, alpha=6.0, num_experts=1, num_identity=0, top_k=1, merge="none")
    ).eval()
    theirs = dict(lora.named_modules())
    for name, module in slim.named_modules():
        if isinstance(module, SlimLayer):
            assert not len(module.slim_router) and not len(module.slim_center)
            module.slim_A["default"].data.copy_(theirs[name].lora_A["default"].weight)
            module.slim_B["default"].data.copy_(theirs[name].lora_B["default"].weight)
    expected = lora(ids).logits
    torch.testing.assert_close(slim(ids).logits, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("mode", ["gate", "calibrated"])
@pytest.mark.parametrize("scope", ["context", "token"])
def test_gradients_equal_those_of_the_slow_formulas(scope, mode):
    options = {"distance_scope": scope, "yield_mode": mode, "yield_strength": 0.5, "yield_quantile": 0.5}
    layer = random_layer(merge="none", top_k=5, cluster_init="random", **options).double()
    layer.slim_A["default"].requires_grad_(False)  # frozen: the clusters stand still
    x = torch.randn(4, 24, dtype=torch.float64, requires_grad=True)
    state = reference.layer_state(layer, "default")
    # A context has no gradient.
    contexts = reference.alone(x.detach())

    def slow(value):
        return reference.slim_delta(value, state, layer.slim_config["default"], layer.scaling["default"], contexts)

    upstream = torch.randn(4, 20, dtype=torch.float64)
    (layer(x) - layer.base_layer(x)).backward(upstream)
    for t, c in ((0, 0), (1, 7), (3, 23)):
        step = torch.zeros_like(x)
        step[t, c] = 1e-4
        numeric = ((slow(x.detach() + step) - slow(x.detach() - step)) * upstream).sum() / 2e-4
        assert x.grad[t, c].item() == pytest.approx(numeric.item(), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_base_dtypes_keep_their_dtype_and_statistics_stay_float32(dtype, ids):
    base = build("llama").to(dtype)
    expected = base(ids).logits
    model = get_peft_model(base, slim_config(init_weights=True))
    assert torch.equal(model.eval()(ids).logits, expected)
    model.train()(input_ids=ids, labels=ids).loss.backward()
    logits = model.eval()(ids).logits
    assert logits.dtype == dtype and logits.isfinite().all()
    for layer in (m for m in model.modules() if isinstance(m, SlimLayer)):
        assert layer.slim_A["default"].grad.isfinite().all()
        for name in ("slim_center", "slim_var", "slim_token_mean", "slim_token_var", "slim_reference"):
            assert getattr(layer, name)["default"].dtype == torch.float32
        center = layer.slim_center["default"]
        # A float32 mean of activations is not a bfloat16 number.
        assert dtype == torch.float32 or not torch.equal(center, center.to(dtype).float())


def test_moving_the_model_to_another_dtype_does_not_round_the_statistics(ids):
    model = trained("llama")
    layer = next(m for m in model.modules() if isinstance(m, SlimLayer))
    before = layer.slim_center["default"].clone(), layer.slim_var["default"].clone()
    model.to(torch.bfloat16)
    assert layer.slim_A["default"].dtype == torch.bfloat16
    assert torch.equal(layer.slim_center["default"], before[0])
    assert torch.equal(layer.slim_var["default"], before[1])
    assert layer.slim_count["default"].dtype == torch.int64
    assert model(ids).logits.dtype == torch.bfloat16


@pytest.mark.parametrize("scope", ["linear", "block"])
def test_autocast_routes_in_float32(scope, ids):
    model = trained("llama", router_scope=scope)
    with trace_routing(model) as plain:
        model(ids)
    with trace_routing(model) as cast, torch.autocast("cpu", dtype=torch.bfloat16):
        model(ids)
    first = plain.row(0), cast.row(0)
    assert first[1].weights.dtype == torch.float32
    # The first layer's input is the same under autocast, so its routing must be bit-equal to float32's.
    assert torch.equal(first[0].weights[0], first[1].weights[0])


def test_a_shared_router_is_computed_once_per_block(ids):
    model = trained("llama", router_scope="block")
    layers = [m for m in model.modules() if isinstance(m, SlimLayer)]
    owners = [m for m in layers if len(m.slim_router)]
    # Per block q/k/v share, o has its own, gate/up share, down has its own.
    assert (len(layers), len(owners)) == (14, 8)
    model(ids)
    assert not any(m.routers["default"]._shared for m in layers), "activations are held after the forward"
