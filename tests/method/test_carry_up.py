# SPDX-License-Identifier: Apache-2.0
"""With `carry_up`, the gate follows the mean excess of all routers that have run so far."""

from __future__ import annotations

import json

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn

from slim_core import set_gate, trace_routing
from slim_core.method.contexts import Sequences
from slim_core.peft_tools import adapter_rows
from tests.conftest import build
from tests.method.small import learned, logits, slim_layers, tiny_t5
from tests.method.small import trained as adapted


STRENGTH = 2.0


def gates(model: nn.Module, ids: Tensor, row: int = 0) -> tuple[Tensor, Tensor]:
    """Gates and excesses of one row, each (Linears, tokens)."""
    with torch.no_grad(), trace_routing(model) as trace:
        model(input_ids=ids)
    routing = trace.row(row)
    return routing.gate, (routing.distance - routing.reference).clamp(min=0)


def means(excess: Tensor) -> Tensor:
    return excess.cumsum(0) / torch.arange(1, len(excess) + 1).unsqueeze(1)


def test_each_gate_follows_the_mean_excess_so_far(ids):
    gate, excess = gates(learned(), ids)
    torch.testing.assert_close(gate, (1 - STRENGTH * means(excess)).clamp(0, 1), rtol=1e-4, atol=1e-4)
    assert (gate != (1 - STRENGTH * excess).clamp(0, 1)).any()


def test_each_gate_follows_its_own_excess_without(ids):
    gate, excess = gates(learned(carry_up=False), ids)
    torch.testing.assert_close(gate, (1 - STRENGTH * excess).clamp(0, 1), rtol=1e-4, atol=1e-4)


def test_linears_that_share_a_router_count_once(ids):
    gate, excess = gates(learned(router_scope="block"), ids)
    # q, k, v · o · gate, up · down
    routers = torch.tensor([0, 3, 4, 6, 7, 10, 11, 13])
    readers = torch.tensor([3, 1, 2, 1, 3, 1, 2, 1])
    expected = (1 - STRENGTH * means(excess[routers])).clamp(0, 1).repeat_interleave(readers, 0)
    torch.testing.assert_close(gate, expected, rtol=1e-4, atol=1e-4)


def test_what_is_far_below_stays_closed_above(ids):
    model = learned()
    layers = list(slim_layers(model).values())
    for layer in layers:
        layer.slim_reference["default"].fill_(100.0)  # nothing is beyond
    layers[0].slim_reference["default"].fill_(-1e4)  # all is
    assert (gates(model, ids)[0] == 0).all()
    base = logits(build("llama"), ids)
    assert torch.equal(logits(model, ids), base)
    set_gate(model, strength=0.0)
    assert not torch.equal(logits(model, ids), base)


def test_an_adapter_of_format_2_goes_on_answering_by_each_routers_own_excess(tmp_path, ids):
    model = learned(carry_up=False, variance_floor=0.0)
    expected = logits(model, ids)
    model.save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    raw = json.loads(path.read_text())
    del raw["carry_up"], raw["variance_floor"]
    path.write_text(json.dumps(raw | {"format_version": 2}))
    again = PeftModel.from_pretrained(build("llama"), tmp_path)
    assert torch.equal(logits(again, ids), expected)
    again.save_pretrained(tmp_path / "again")
    kept = json.loads((tmp_path / "again" / "adapter_config.json").read_text())
    assert (kept["format_version"], kept["carry_up"]) == (2, False)


def test_rows_of_other_adapters_and_of_the_base_do_not_count(ids):
    model = learned()
    model.add_adapter("other", learned(yield_quantile=0.3).peft_config["default"])
    alone = gates(model, ids)[0]
    names = ["__base__", "default", "other", "default"]
    rows = ids[[1, 0, 2, 0]]
    with torch.no_grad(), adapter_rows(model, names), trace_routing(model) as trace:
        model.get_base_model()(input_ids=rows)
    for row in (1, 3):
        torch.testing.assert_close(trace.row(row).gate, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("names", [["default"] * 3, ["default", "__base__", "default"]])
def test_one_token_at_a_time_is_as_in_the_whole(names, ids):
    model = learned()
    rows = [row for row, name in enumerate(names) if name == "default"]
    whole = [gates(model, ids, row)[0] for row in rows]
    with torch.no_grad(), adapter_rows(model, names), trace_routing(model) as trace:
        cache = None
        for t in range(ids.shape[1]):
            out = model.get_base_model()(input_ids=ids[:, t : t + 1], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
    for row, expected in zip(rows, whole, strict=True):
        torch.testing.assert_close(trace.row(row).gate, expected, rtol=1e-3, atol=1e-4)


def test_forwards_do_not_count_for_each_other(ids):
    model = learned()
    first = gates(model, ids)[0]
    assert torch.equal(gates(model, ids)[0], first)


def test_encoder_and_decoder_are_judged_apart(ids):
    model = adapted(ids, base=tiny_t5(), target_modules=["q", "k", "v", "o", "wi", "wo"], yield_quantile=0.6)
    seen: dict[Sequences, int] = {}
    original = Sequences.excess_sum

    def note(self, adapter_name):
        seen[self] = seen.get(self, 0) + 1
        return original(self, adapter_name)

    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sequences, "excess_sum", note)
        model(input_ids=ids, decoder_input_ids=ids[:, :5])
    # Each router asks, and then adds its excess. The decoder's k and v read what the encoder wrote.
    assert sorted(n // 2 for n in seen.values()) == [2, 6, 8]


def test_layers_that_are_called_by_themselves_follow_their_own(ids):
    model = learned()
    layer = slim_layers(model)["model.layers.1.mlp.up_proj"]
    x = torch.randn(2, 6, layer.in_features)
    with torch.no_grad():
        first = layer(x)
        for other in slim_layers(model).values():
            other(torch.randn(2, 6, other.in_features) * 1e3)
        assert torch.equal(layer(x), first)
