# SPDX-License-Identifier: Apache-2.0
"""The routing trace: right numbers for the right rows and tokens, and nothing left behind."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from slim_core import SlimConfig, load_lora, trace_routing
from slim_core.method.layer import SlimLayer
from tests.conftest import build
from tests.method import reference
from tests.method.small import router_layer


def slim_model(**changes):
    sizes = {"r": 2, "num_experts": 3, "num_identity": 2, "num_clusters": 4, "init_weights": False}
    config = SlimConfig(**({"target_modules": "all-linear"} | sizes | changes))
    model = get_peft_model(build("llama"), config, "my-slim")
    model.train()(torch.randint(3, 99, (4, 10)))
    return model.eval()


@pytest.mark.parametrize("distance_scope", ["context", "token"])
@pytest.mark.parametrize("scope", ["linear", "block"])
def test_the_trace_holds_what_the_formulas_say(scope, distance_scope, ids):
    model = slim_model(router_scope=scope, distance_scope=distance_scope, yield_quantile=0.7)
    inputs = {}
    layers = {m.module_name: m for m in model.modules() if isinstance(m, SlimLayer)}
    for layer in layers.values():
        layer.register_forward_hook(lambda m, args, out: inputs.__setitem__(m.module_name, args[0].detach()))
    with trace_routing(model) as trace:
        model(ids)
    routing = trace.row(1)
    assert trace.rows == [0, 1, 2]
    assert routing.modules == list(inputs) and routing.weights.shape == (14, 12, 5)
    below = reference.Below()
    for i, module in enumerate(routing.modules):
        layer, excesses = layers[module], []
        owner = router_layer(layer, model, "my-slim")
        state = reference.layer_state(owner, "my-slim")
        x = inputs[module][1].double()
        mean, count = reference.sequence_contexts(x)
        for t in range(12):
            config, before = layer.slim_config["my-slim"], below.of(owner, t)
            slow = reference.token_weights(x[t], state, config, mean[t], int(count[t]), before)
            excesses.append(slow["excess"])
            torch.testing.assert_close(routing.weights[i, t], torch.tensor(slow["weights"]), rtol=1e-3, atol=1e-4)
            for name in ("distance", "gate", "reference"):
                actual = getattr(routing, name)[i, t].item()
                assert actual == pytest.approx(slow[name], rel=1e-3, abs=1e-4), name
            assert routing.cluster[i, t] == slow["cluster"]
            assert routing.identity[i, t].item() == pytest.approx(sum(slow["weights"][3:]), rel=1e-3, abs=1e-4)
        below.note(owner, excesses)
    assert ((routing.gate > 0) & (routing.gate < 1)).any()


def test_decoding_steps_join_to_the_whole_sequence(ids):
    model = slim_model()
    with trace_routing(model, rows=[0]) as trace:
        tokens = model.generate(ids[:1], max_new_tokens=6, min_new_tokens=6, do_sample=False)
    # The last token is never read, so it was never routed.
    with trace_routing(model, rows=[0]) as whole:
        model(tokens[:, :-1])
    assert trace.row(0).weights.shape[1] == 12 + 5
    for name in ("weights", "distance", "gate", "reference"):
        actual, expected = getattr(trace.row(0), name), getattr(whole.row(0), name)
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("order", [["__base__", "my-lora", "my-slim"], ["my-slim", "__base__", "my-slim"]])
def test_each_row_has_its_own_adapters_routing(order, ids, tmp_path):
    config = LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(build("llama"), config).save_pretrained(tmp_path)
    model = load_lora(slim_model(), tmp_path, "my-lora")
    with trace_routing(model) as trace:
        model(ids, adapter_names=order)
    assert trace.rows == [i for i, name in enumerate(order) if name != "__base__"]
    for row, name in enumerate(order):
        if name == "my-lora":
            routing = trace.row(row)
            assert routing.weights.shape == (4, 12, 1) and (routing.weights == 1).all()
            assert (routing.identity == 0).all() and (routing.cluster == -1).all()
            assert (routing.gate == 1).all() and (routing.reference == 0).all()
        elif name == "my-slim":
            with trace_routing(model, rows=[0]) as alone:
                model(ids[row : row + 1], adapter_names=["my-slim"])
            torch.testing.assert_close(trace.row(row).weights, alone.row(0).weights, rtol=1e-3, atol=1e-4)
        else:
            with pytest.raises(KeyError, match="No routing was recorded for row"):
                trace.row(row)


def test_only_the_wanted_rows_are_recorded(ids):
    model = slim_model()
    with trace_routing(model, rows=[2]) as trace:
        model(ids)
    assert trace.rows == [2]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_left_out(side, ids):
    model = slim_model()
    mask = torch.ones_like(ids)
    if side == "left":
        mask[1, :5] = 0
    else:
        mask[1, -5:] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with trace_routing(model) as trace:
        model(input_ids=ids, attention_mask=mask, position_ids=positions)
    with trace_routing(model) as alone:
        model(ids[1:2, 5:] if side == "left" else ids[1:2, :-5])
    assert trace.row(0).weights.shape[1] == 12
    torch.testing.assert_close(trace.row(1).weights, alone.row(0).weights, rtol=1e-3, atol=1e-4)


def test_nothing_is_recorded_after_the_block_even_if_it_raised(ids):
    model = slim_model()
    with pytest.raises(RuntimeError, match="stop"), trace_routing(model) as trace:
        model(ids)
        raise RuntimeError("stop")
    before = trace.row(0).weights.shape
    model(ids)
    assert trace.row(0).weights.shape == before
    assert model.base_model.context.trace is None


def test_tracing_does_not_change_the_answer(ids):
    model = slim_model()
    plain = model(ids).logits
    with trace_routing(model):
        assert torch.equal(model(ids).logits, plain)


def test_two_adapters_on_one_row_are_a_sentence(ids):
    model = slim_model()
    model.add_adapter("other", SlimConfig(r=2, num_experts=2, target_modules="all-linear"))
    model.base_model.set_adapter(["my-slim", "other"])
    with pytest.raises(ValueError, match="a trace holds one adapter for each row"), trace_routing(model.eval()):
        model(ids)


def test_a_trace_within_a_trace_is_a_sentence(ids):
    model = slim_model()
    with trace_routing(model) as outer:
        with pytest.raises(RuntimeError, match="being traced already"), trace_routing(model):
            pass
        model(ids)
    assert outer.rows == [0, 1, 2]


def test_an_output_head_that_saw_fewer_tokens_is_left_out(ids):
    model = slim_model(target_modules=["q_proj", "lm_head"], distance_scope="token")
    with trace_routing(model, rows=[0]) as trace:
        model.generate(ids[:1], max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert [m.rpartition(".")[2] for m in trace.row(0).modules] == ["q_proj", "q_proj"]


def test_a_model_without_slim_is_a_sentence():
    with pytest.raises(ValueError, match="no SLIM layer"), trace_routing(build("llama")):
        pass
