# SPDX-License-Identifier: Apache-2.0
"""The gate: closed it is the base bit for bit, open it is not there, and both can be asked for."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from slim_core import SlimConfig, set_gate, trace_routing
from slim_core.method import AS_TRAINED, GateSetting
from slim_core.peft_tools import adapter_rows
from tests.conftest import TINY, build
from tests.method import reference
from tests.method.small import learned, logits, slim, slim_layers, small_base


FAMILIES = [*TINY, "opt", "stories"]


def close(model: nn.Module) -> None:
    """Every distance is beyond the reference, and far."""
    for layer in slim_layers(model).values():
        for kept in layer.slim_reference.values():
            kept.fill_(-10.0)
    set_gate(model, strength=1e6)


def gates(model: nn.Module, ids: Tensor, **inputs) -> Tensor:
    """(rows, Linears, tokens)."""
    with torch.no_grad(), trace_routing(model) as trace:
        model(input_ids=ids, **inputs)
    return torch.stack([trace.row(row).gate for row in trace.rows])


# -- closed --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["context", "token"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_closed_gate_is_the_base_bit_for_bit(family, scope, ids):
    expected = logits(small_base(family), ids)
    model = learned(family, distance_scope=scope)
    assert not torch.equal(logits(model, ids), expected)
    close(model)
    assert torch.equal(logits(model, ids), expected)
    assert torch.equal(model(input_ids=ids).logits, expected)  # with gradients
    with trace_routing(model) as trace:
        logits(model, ids)
    assert (trace.row(0).gate == 0).all() and (trace.row(0).weights[..., :3] == 0).all()
    assert (trace.row(0).identity == 1).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_closed_gate_is_a_base_in_half_precision_bit_for_bit(dtype, ids):
    expected = logits(build("llama").to(dtype), ids)
    model = learned(base=build("llama").to(dtype))
    assert not torch.equal(logits(model, ids), expected)
    close(model)
    assert torch.equal(logits(model, ids), expected)


@pytest.mark.parametrize("merge", ["fast", "dare", "none"])
@pytest.mark.parametrize("hidden", [0, 4])
def test_a_closed_gate_is_the_base_with_every_kind_of_merging_and_router(merge, hidden, ids):
    expected = logits(build("llama"), ids)
    model = learned(merge=merge, mask_rate=0.4, router_hidden=hidden, router_scope="block", num_identity=0, top_k=3)
    close(model)
    assert torch.equal(logits(model, ids), expected)


def test_decoding_behind_a_closed_gate_is_the_base_bit_for_bit(ids):
    base, model = build("llama"), learned(merge="none")
    close(model)
    names = ["default", "__base__", "default"]

    def decode(run: nn.Module) -> Tensor:
        cache, outputs = None, []
        for part in [slice(0, 6), *(slice(t, t + 1) for t in range(6, 12))]:
            out = run(input_ids=ids[:, part], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            outputs.append(out.logits)
        return torch.cat(outputs, 1)

    with torch.no_grad():
        expected = decode(base)
        assert torch.equal(decode(model), expected)
        with adapter_rows(model, names):
            assert torch.equal(decode(model.get_base_model()), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_from_where_every_gate_is_closed_the_base_goes_on_bit_for_bit(family, ids):
    model = learned(family)
    with torch.no_grad():
        cache = model(input_ids=ids[:, :5], use_cache=True).past_key_values
    assert (gates(model, ids[:, :5]) > 0).any()
    close(model)
    twin = copy.deepcopy(cache)
    with torch.no_grad():
        for part in ids[:, 5:].split([1, 1, 5], 1):
            after = model(input_ids=part, past_key_values=cache, use_cache=True).logits
            with model.disable_adapter():
                assert torch.equal(after, model(input_ids=part, past_key_values=twin, use_cache=True).logits)
    # What was read with the gates open still counts.
    assert not torch.equal(after, logits(small_base(family), ids)[:, 7:])


def test_training_behind_a_closed_gate_moves_no_factor_and_no_router(ids):
    model = learned()
    close(model)
    model.train()(input_ids=ids, labels=ids).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or not parameter.grad.any(), name


# -- the first tokens of a context ---------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_the_first_tokens_of_a_context_are_the_bases(family, ids):
    expected = logits(small_base(family), ids)
    model = learned(family, context_warmup=4, yield_strength=0.0)
    actual = logits(model, ids)
    torch.testing.assert_close(actual[:, :4], expected[:, :4], rtol=0, atol=0)
    assert all(not torch.allclose(actual[:, t], expected[:, t], atol=1e-3) for t in range(4, 12))
    opened = gates(model, ids)
    assert (opened[..., :4] == 0).all() and (opened[..., 4:] == 1).all()


def test_a_context_that_is_no_longer_than_the_warm_up_is_the_base_bit_for_bit(ids):
    model = learned(context_warmup=12, yield_strength=0.0)
    assert torch.equal(logits(model, ids), logits(build("llama"), ids))


def test_each_turn_has_first_tokens(ids):
    ids = ids.clone()
    ids[:, 6:8] = torch.tensor([5, 7])
    opened = gates(learned(context_warmup=2, turn_opening=[5, 7], yield_strength=0.0), ids)
    assert opened[0, 0].tolist() == [0, 0, 1, 1, 1, 1, 1, 0, 0, 1, 1, 1]


def test_padding_is_no_first_token(ids):
    mask = torch.ones_like(ids)
    mask[:, :5] = 0
    opened = gates(learned(context_warmup=2, yield_strength=0.0), ids, attention_mask=mask)
    assert opened[0, 0].tolist() == [0, 0, 1, 1, 1, 1, 1]


# -- asked for -----------------------------------------------------------------------------------------------------


def test_a_strength_of_zero_forces_the_gate_open(ids):
    model = learned()
    before = logits(model, ids)
    assert (gates(model, ids) < 1).any()
    set_gate(model, strength=0)
    assert (gates(model, ids) == 1).all() and not torch.allclose(logits(model, ids), before)
    set_gate(model, strength=2.0)
    assert torch.equal(logits(model, ids), before)


def test_a_higher_quantile_opens_the_gate(ids):
    model, shares = learned(), []
    for quantile in (0.5, 0.7, 0.9, 0.97, 0.999):
        set_gate(model, quantile=quantile)
        # Of the first block alone: what the others read depends on it.
        shares.append(gates(model, ids)[:, :3].mean().item())
    assert shares == sorted(shares) and shares[0] < shares[-1]
    layer = next(iter(slim_layers(model).values()))
    with trace_routing(model) as trace:
        logits(model, ids)
    kept = layer.slim_reference["default"]
    expected = [reference.in_domain(kept, 0.999, count) for count in range(1, 13)]
    assert trace.row(0).reference[0].tolist() == pytest.approx(expected)


def test_a_gate_is_set_for_one_adapter_or_for_all(ids):
    model = learned()
    model.add_adapter("other", slim())
    model.add_adapter("lora", slim(num_experts=1, num_identity=0, top_k=1))
    set_gate(model, strength=3.5, adapter_name="other")
    assert {name: c.yield_strength for name, c in model.peft_config.items() if name != "lora"} == {
        "default": 2.0,
        "other": 3.5,
    }
    set_gate(model, strength=1.0, quantile=0.9)
    for layer in slim_layers(model).values():
        for name in ("default", "other"):
            assert (layer.slim_config[name].yield_strength, layer.slim_config[name].yield_quantile) == (1.0, 0.9)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"strength": -1.0}, "`strength` must be 0 or more"),
        ({"strength": float("nan")}, "`strength` must be a finite number"),
        ({"quantile": 1.0}, "`quantile` must be above 0 and below 1"),
        ({"strength": 1.0, "quantile": 0.3}, "The quantile is 0.3; it must be from 0.5 to 0.999, which the adapter"),
        ({"strength": 1.0, "adapter_name": "nobody"}, "no SLIM adapter with a gate named 'nobody'"),
    ],
    ids=str,
)
def test_a_gate_that_cannot_be_is_a_sentence_and_changes_nothing(wrong, sentence, ids):
    model = learned()
    before = logits(model, ids)
    with pytest.raises(ValueError, match=sentence):
        set_gate(model, **wrong)
    assert torch.equal(logits(model, ids), before)
    with pytest.raises(ValueError, match="no SLIM adapter with a gate"):
        set_gate(build("llama"), strength=1.0)


def test_a_saved_adapter_keeps_its_gate(tmp_path, ids):
    model = learned(context_warmup=1, turn_opening=[5, 7])
    set_gate(model, strength=1.25, quantile=0.8)
    model.save_pretrained(tmp_path)
    config = SlimConfig.from_pretrained(tmp_path)
    assert (config.yield_strength, config.yield_quantile) == (1.25, 0.8)
    assert (config.turn_opening, config.context_warmup) == ([5, 7], 1)
    loaded = PeftModel.from_pretrained(build("llama"), tmp_path)
    assert torch.equal(logits(loaded, ids), logits(model, ids))


# -- by row --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["context", "token"])
@pytest.mark.parametrize("mode", ["gate", "calibrated", "paper"])
def test_rows_may_have_strengths_of_their_own(scope, mode, ids):
    model = learned(merge="none", distance_scope=scope, yield_mode=mode)
    base = model.get_base_model()
    names, strengths = ["default", "default", "default"], [0.0, None, 7.5]

    @torch.no_grad()
    def read() -> Tensor:
        first = base(input_ids=ids[:, :6], use_cache=True)
        outputs = [first.logits]
        for t in range(6, 12):
            outputs.append(base(input_ids=ids[:, t : t + 1], past_key_values=first.past_key_values).logits)
        return torch.cat(outputs, 1)

    with adapter_rows(model, names, [GateSetting(strength) for strength in strengths]):
        actual = read()
    for row, strength in enumerate([0.0, 2.0, 7.5]):
        set_gate(model, strength=strength)
        expected = read()
        torch.testing.assert_close(actual[row], expected[row], rtol=1e-4, atol=2e-4 * expected.abs().max().item())
    assert not torch.allclose(actual[0], expected[0], atol=1e-2)


@pytest.mark.parametrize("scope", ["context", "token"])
@pytest.mark.parametrize("mode", ["gate", "calibrated"])
def test_rows_may_begin_to_close_where_they_ask_to(scope, mode, ids):
    model = learned(merge="none", distance_scope=scope, yield_mode=mode)
    base = model.get_base_model()
    asked = [GateSetting(quantile=0.5), AS_TRAINED, GateSetting(0.7, 0.93)]

    @torch.no_grad()
    def read() -> tuple[Tensor, Tensor]:
        with trace_routing(model) as trace:
            first = base(input_ids=ids[:, :6], use_cache=True)
            outputs = [first.logits]
            for t in range(6, 12):
                outputs.append(base(input_ids=ids[:, t : t + 1], past_key_values=first.past_key_values).logits)
        return torch.cat(outputs, 1), torch.stack([trace.row(row).reference for row in trace.rows])

    with adapter_rows(model, ["default"] * 3, asked):
        actual, references = read()
    for row, (strength, quantile) in enumerate([(2.0, 0.5), (2.0, 0.6), (0.7, 0.93)]):
        set_gate(model, strength=strength, quantile=quantile)
        expected, own = read()
        torch.testing.assert_close(actual[row], expected[row], rtol=1e-4, atol=2e-4 * expected.abs().max().item())
        torch.testing.assert_close(references[row], own[row])
    assert (references[0] < references[1]).all() and (references[1] < references[2]).all()
    assert not torch.allclose(actual[1], expected[1], atol=1e-2)


def test_beams_have_the_gate_of_their_row(ids):
    model = learned(merge="none")
    base = model.get_base_model()
    asked, options = [GateSetting(quantile=0.5), GateSetting(0.0)], {"num_beams": 3, "max_new_tokens": 5}
    with adapter_rows(model, ["default"] * 2, asked):
        together = base.generate(ids[:2], **options)
    for row, gate in enumerate(asked):
        with adapter_rows(model, ["default"], [gate]):
            assert torch.equal(base.generate(ids[row : row + 1], **options)[0], together[row])


def test_a_gate_that_is_set_while_rows_are_is_theirs_too(ids):
    model = learned(merge="none")
    base = model.get_base_model()
    with adapter_rows(model, ["default"] * 3, [GateSetting(quantile=0.5), AS_TRAINED, AS_TRAINED]):
        before = logits(base, ids)
        set_gate(model, strength=0.0, quantile=0.9)
        after = logits(base, ids)
        # With gradients, too, which go through what was kept of the rows.
        base(input_ids=ids).logits.sum().backward()
    assert not torch.allclose(before[1], after[1], atol=1e-2)
    torch.testing.assert_close(after, logits(model, ids), rtol=1e-4, atol=1e-4)


def test_rows_of_several_adapters_have_each_their_strength(ids):
    model = learned()
    model.add_adapter("other", slim(target_modules="all-linear", yield_strength=9.0))
    model.eval()
    names = ["other", "__base__", "default"]
    with adapter_rows(model, names, [GateSetting(0.0), AS_TRAINED, GateSetting(0.5)]), trace_routing(model) as trace:
        actual = logits(model.get_base_model(), ids)
    assert torch.equal(actual[1], logits(build("llama"), ids)[1]) and trace.rows == [0, 2]
    assert (trace.row(0).gate == 1).all()
    set_gate(model, strength=0.5, adapter_name="default")
    expected = logits(model, ids)[2]
    torch.testing.assert_close(actual[2], expected, rtol=1e-4, atol=1e-4)


def test_as_many_strengths_as_rows():
    model = learned()
    with (
        pytest.raises(ValueError, match="2 gate settings for 3 rows"),
        adapter_rows(model, ["default"] * 3, [AS_TRAINED] * 2),
    ):
        pass


def test_the_gate_of_an_adapter_that_has_seen_nothing_is_open(ids):
    # Nothing is unlike what nobody has seen.
    model = get_peft_model(build("llama"), SlimConfig(target_modules="all-linear", init_weights=False)).eval()
    opened = gates(model, ids)
    assert (opened[..., 0] == 0).all() and (opened[..., 1:] == 1).all()
    assert (logits(model, ids) != logits(build("llama"), ids)).any(-1)[:, 1:].all()
