# SPDX-License-Identifier: Apache-2.0
"""Rows of one token on a CPU: a shorter way to the same numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from peft import PeftModel

from slim_core import trace_routing
from slim_core.inference.single_token import MOST_ROWS, TokenRows
from slim_core.inference.single_token_router import InputContexts, TokenRouter
from slim_core.method import Linear
from slim_core.method.contexts import Sequences
from slim_core.peft_tools import adapter_rows, fold_masks
from tests.conftest import TINY, build
from tests.method.small import slim, slim_layers, train


KINDS = {
    "paper": {},
    "all": {
        "num_experts": 2,
        "num_identity": 2,
        "top_k": 3,
        "router_scope": "block",
        "router_hidden": 4,
        "yield_mode": "calibrated",
        "mask_rescale": True,
    },
    "every": {
        "num_identity": 0,
        "top_k": 3,
        "router_scope": "block",
        "distance_scope": "token",
        "yield_mode": "paper",
        "distance": "max",
    },
    "lora": {"num_experts": 1, "num_identity": 0, "top_k": 1, "merge": "none"},
}
NAMES = ["paper", "__base__", "all", "every", "lora", "paper"]


def several(ids: torch.Tensor, family: str = "llama", fold: bool = True, **changes) -> PeftModel:
    """A model with one trained adapter of each kind."""
    model = None
    for name, kind in KINDS.items():
        config = slim(target_modules="all-linear", alpha=8.0, **(kind | changes))
        if model is None:
            model = PeftModel(build(family), config, name)
        else:
            model.add_adapter(name, config)
        model.set_adapter(name)
        train(model, ids)
        if fold:
            fold_masks(model, name)
    return model.eval()


@contextmanager
def long_way(monkeypatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(Linear, "rows_kernel", None)
        yield


@contextmanager
def one_token(model: PeftModel, names: list[str]) -> Iterator[None]:
    """Layers that are called by themselves, as in a forward that reads the first token of each row."""
    context = model.base_model.context
    with torch.no_grad(), adapter_rows(model, names):
        context.sequences = Sequences(len(names), 1, torch.device("cpu"))
        try:
            yield
        finally:
            context.sequences = None


@pytest.fixture
def taken(monkeypatch) -> list[str]:
    """The adapters whose rows went the short way, one for each row of each Linear."""
    names = []
    add = TokenRows.add

    def counted(self, *args):
        names.extend(row.name for row in self._rows)
        return add(self, *args)

    monkeypatch.setattr(TokenRows, "add", counted)
    return names


@torch.no_grad()
def decode(model: PeftModel, names: list[str], ids: torch.Tensor) -> torch.Tensor:
    """(B, T - 6, V) logits of the last tokens, which are read one by one."""
    base = model.get_base_model()
    with adapter_rows(model, names):
        output = base(ids[:, :6], use_cache=True)
        logits = []
        for i in range(6, ids.shape[1]):
            output = base(ids[:, i : i + 1], past_key_values=output.past_key_values, use_cache=True)
            logits.append(output.logits)
    return torch.cat(logits, dim=1)


def batch(ids: torch.Tensor, rows: int) -> torch.Tensor:
    return torch.cat([ids, ids.flip(1)])[:rows]


@pytest.mark.parametrize("family", TINY)
def test_the_numbers_are_the_same_in_every_family(family, ids, monkeypatch, taken):
    model, tokens = several(ids, family), batch(ids, len(NAMES))
    short = decode(model, NAMES, tokens)
    assert set(taken) == set(KINDS)
    taken.clear()
    with long_way(monkeypatch):
        long = decode(model, NAMES, tokens)
    assert not taken
    torch.testing.assert_close(short, long, rtol=1e-5, atol=1e-5)
    base = decode(model, ["__base__"] * len(NAMES), tokens)
    torch.testing.assert_close(short[1], base[1], rtol=1e-5, atol=1e-5)
    assert all((short[row] - base[row]).abs().max() > 1e-3 for row in (0, 2, 3, 4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_base_in_half_precision_is_rounded_once(dtype, ids, monkeypatch, taken):
    model = several(ids)
    layer = slim_layers(model)["model.layers.0.mlp.up_proj"]
    layer.base_layer.to(dtype)
    x = torch.randn(len(NAMES), 1, 32).to(dtype)
    with one_token(model, NAMES):
        short = layer(x)
        with long_way(monkeypatch):
            long = layer(x)
        base = layer.base_layer(x)
    assert short.dtype == long.dtype == dtype and len(taken) == 5
    assert torch.equal(short[1], base[1])
    # Sums that differ by rounding in float32 may fall on either side of a half.
    torch.testing.assert_close(short, long, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)
    assert (short != long).float().mean() < 0.01


@pytest.mark.parametrize("name", KINDS)
def test_a_row_is_what_it_is_alone(name, ids):
    model, tokens = several(ids), batch(ids, len(NAMES))
    row = NAMES.index(name)
    together = decode(model, NAMES, tokens)[row]
    torch.testing.assert_close(decode(model, [name], tokens[row : row + 1])[0], together, rtol=1e-5, atol=1e-5)


def test_generation_takes_the_short_way(ids, monkeypatch, taken):
    model, tokens = several(ids), batch(ids, len(NAMES))
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "pad_token_id": 0, "do_sample": False}
    short = model.generate(tokens, adapter_names=NAMES, **options)
    # Five of six rows have an adapter, and five of six tokens come after another.
    assert len(taken) == 5 * 5 * len(slim_layers(model))
    with long_way(monkeypatch):
        assert torch.equal(model.generate(tokens, adapter_names=NAMES, **options), short)


def test_the_trace_records_the_same(ids, monkeypatch):
    model, tokens = several(ids), batch(ids, len(NAMES))
    with trace_routing(model, rows=[0, 2, 4]) as short:
        decode(model, NAMES, tokens)
    with long_way(monkeypatch), trace_routing(model, rows=[0, 2, 4]) as long:
        decode(model, NAMES, tokens)
    assert short.rows == long.rows == [0, 2, 4]
    for row in short.rows:
        a, b = short.row(row), long.row(row)
        assert a.modules == b.modules and a.num_experts == b.num_experts
        assert a.weights.shape == (len(a.modules), ids.shape[1], a.weights.shape[-1])
        torch.testing.assert_close(a.weights, b.weights, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(a.distance, b.distance, rtol=1e-4, atol=1e-5)
        assert torch.equal(a.cluster, b.cluster)


def test_the_trace_leaves_padding_out(ids):
    model = several(ids)
    with torch.no_grad(), adapter_rows(model, ["paper", "lora"]), trace_routing(model) as trace:
        for mask in ([1, 0], [0, 0], [1, 1]):
            model.get_base_model()(ids[:2, :1], attention_mask=torch.tensor(mask).unsqueeze(1))
    layers = len(slim_layers(model))
    assert trace.row(0).weights.shape == (layers, 2, 4)
    assert trace.row(1).weights.shape == (layers, 1, 1)
    assert trace.row(1).cluster.dtype == torch.int64


def test_linears_of_a_block_share_one_routing(ids, monkeypatch):
    model = several(ids)
    routed = []
    route = TokenRouter._route
    monkeypatch.setattr(TokenRouter, "_route", lambda self, *args: routed.append(1) or route(self, *args))
    with torch.no_grad(), adapter_rows(model, ["all", "__base__", "all"]):
        model.get_base_model()(ids[:, :1])
    # Two rows; q, k and v share a router, as do gate and up.
    assert len(routed) == 2 * 2 * 4
    layer = slim_layers(model)["model.layers.0.mlp.gate_proj"], slim_layers(model)["model.layers.0.mlp.up_proj"]
    x = torch.randn(1, 1, 32)
    with one_token(model, ["all"]):
        routed.clear()
        layer[0](x)
        layer[1](x.mul_(-3))
    # What was written to since is another token.
    assert len(routed) == 2


def test_routers_of_one_input_place_its_context_together(ids, monkeypatch):
    model = several(ids)
    means = []
    mean = InputContexts.mean
    monkeypatch.setattr(InputContexts, "mean", lambda self, row: means.append(row) or mean(self, row))
    counts = []
    with torch.no_grad(), adapter_rows(model, ["__base__", "paper"]):
        for _ in range(3):
            means.clear()
            model.get_base_model()(ids[:2, :1])
            counts.append(len(means))
    # From the second token on it is known that q, k and v have the same input, as have gate and up.
    assert counts == [2 * 7, 2 * 4, 2 * 4]


def test_routers_that_do_not_read_the_expected_input_change_nothing(ids):
    model = several(ids)
    with torch.no_grad(), adapter_rows(model, ["paper"]):
        expected = model.get_base_model()(ids[:1, :1]).logits
        kept = model.base_model.context.rows.kept
        routers = [router for router in kept.values() if isinstance(router, TokenRouter)]
        of_same_width = [router for router in routers if router._center.shape[1] == 32]
        for router in of_same_width:
            router.others = [other for other in of_same_width if other is not router]
        assert torch.equal(model.get_base_model()(ids[:1, :1]).logits, expected)


def test_nothing_is_asked_where_no_row_has_an_adapter(ids, monkeypatch):
    model = several(ids)
    monkeypatch.setattr(Linear, "rows_kernel", None)
    monkeypatch.setattr(Linear, "_add_experts", None)
    with torch.no_grad(), adapter_rows(model, ["__base__", "__base__"]):
        rows = model.get_base_model()(ids[:2]).logits
    with torch.no_grad(), model.disable_adapter():
        assert torch.equal(model(ids[:2]).logits, rows)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30, 3e38])
def test_numbers_that_overflow_stay_in_their_row(value, ids, monkeypatch, taken):
    model = several(ids)
    layer = slim_layers(model)["model.layers.0.mlp.up_proj"]
    x = torch.randn(len(NAMES), 1, 32)
    wild = x.clone()
    wild[2:4, :, 0] = value

    def run(x):
        with one_token(model, NAMES):
            return layer(x)

    short, calm = run(wild), run(x)
    assert len(taken) == 10
    with long_way(monkeypatch):
        long = run(wild)
    assert torch.equal(short[[0, 1, 4, 5]], calm[[0, 1, 4, 5]])
    assert torch.equal(short[2:4].isfinite().all(-1), long[2:4].isfinite().all(-1))


@pytest.mark.parametrize(("strength", "impossible"), [(1e308, []), (0.0, [1, 2, 3]), (0.0, [0, 1, 3])])
def test_experts_that_cannot_be_chosen_do_not_take_the_place_of_others(strength, impossible, ids, monkeypatch):
    model = several(ids)
    layer = slim_layers(model)["model.layers.0.mlp.up_proj"]
    layer.slim_config["all"].yield_strength = strength
    owner = slim_layers(model)["model.layers.0.mlp.gate_proj"]
    owner.slim_router_bias["all"].data[impossible] = -torch.inf
    x = 50 * torch.randn(1, 1, 32)
    with one_token(model, ["all"]), trace_routing(model) as short:
        layer(x)
    with long_way(monkeypatch), one_token(model, ["all"]), trace_routing(model) as long:
        layer(x)
    torch.testing.assert_close(short.row(0).weights, long.row(0).weights)
    assert short.row(0).weights.sum() == 1


def test_what_it_is_not_made_for_goes_the_long_way(ids, taken):
    model, masked, entrywise = several(ids), several(ids, fold=False), several(ids, merge="dare")
    interleaved = several(ids, fold=False, merge="none")
    tokens = batch(ids, len(NAMES))

    def run(model, names, tokens, **options):
        with adapter_rows(model, names):
            model.get_base_model()(tokens, **options)

    with torch.no_grad():
        run(model, NAMES, tokens[:, :2])
        # Beams: one name for several rows.
        run(model, NAMES[:3], tokens[:, :1])
        run(model, ["paper"] * (MOST_ROWS + 1), tokens[:1, :1].expand(MOST_ROWS + 1, -1))
        with torch.autocast("cpu", torch.bfloat16):
            run(model, NAMES, tokens[:, :1])
        run(masked, ["paper"], tokens[:1, :1])
        run(entrywise, ["paper"], tokens[:1, :1])
        run(interleaved, ["paper"], tokens[:1, :1])
    # With gradients, since it writes in place.
    run(model, NAMES, tokens[:, :1])
    with torch.no_grad():
        model.get_base_model()(tokens[:, :1])
        # Factors in half precision.
        run(model.bfloat16(), NAMES, tokens[:, :1])
    assert not taken


def test_nothing_is_kept_after_the_rows(ids):
    model = several(ids)
    decode(model, NAMES, batch(ids, len(NAMES)))
    context = model.base_model.context
    assert context.rows is None


def test_clusters_that_moved_are_seen(ids, monkeypatch, taken):
    # One expert is in one piece of memory without being folded, and so can go on learning.
    model = several(ids, fold=False, merge="none", num_experts=1, num_identity=2, top_k=2)
    model.set_adapter("paper")

    @torch.no_grad()
    def first_token() -> torch.Tensor:
        with adapter_rows(model, ["paper"]):
            return model.get_base_model()(ids[:1, :1]).logits

    before = first_token()
    with torch.no_grad():
        model.train()(ids.flip(0))
    model.eval()
    after = first_token()
    assert len(taken) == 2 * len(slim_layers(model)) and not torch.equal(after, before)
    with long_way(monkeypatch):
        torch.testing.assert_close(first_token(), after, rtol=1e-5, atol=1e-5)
