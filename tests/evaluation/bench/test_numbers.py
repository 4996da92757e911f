# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of the benches: medians, spread, ratios within a round, bytes, and who was answered."""

from __future__ import annotations

from itertools import cycle

import pytest
import torch
from transformers import LlamaForCausalLM

from slim_core.evaluation.bench import turns
from slim_core.evaluation.bench.clients import serve_clients
from slim_core.evaluation.bench.decode import adapter_bytes
from slim_core.evaluation.bench.machine import describe_machine, limits, read_per_token
from slim_core.evaluation.bench.shapes import SHAPES, adapted, lora_config, random_base, sharing, slim_config
from slim_core.evaluation.bench.turns import repeated, summary, take_turns


def test_ratios_are_those_within_a_round():
    rounds = {
        "base": [{"run": 1.0}, {"run": 10.0}, {"run": 2.0}],
        "slim": [{"run": 3.0, "more": 7.0}, {"run": 20.0, "more": 5.0}, {"run": 5.0, "more": 6.0}],
    }
    base, slim, more = summary(rounds, ("base",), lambda way, measure, seconds: {"twice": 2 * seconds})
    assert (base.seconds, base.low, base.high, base.ratios) == (2.0, 1.0, 10.0, {"base": 1.0})
    # 3, 2 and 2.5, though the medians are 5 and 2.
    assert (slim.way, slim.seconds, slim.ratios, slim.facts) == ("slim", 5.0, {"base": 2.5}, {"twice": 10.0})
    assert (more.measure, more.seconds, more.ratios) == ("more", 6.0, {})
    of_four = summary({"a": [{"run": value} for value in (1.0, 2.0, 3.0, 4.0)]}, ())[0]
    assert (of_four.low, of_four.seconds, of_four.high) == (1.25, 2.5, 3.75)


def test_ways_take_turns_and_the_first_round_does_not_count():
    order, values = [], cycle(range(100))

    def way(name):
        return lambda: order.append(name) or {"run": float(next(values))}

    measured = take_turns({name: way(name) for name in "ab"}, rounds=2)
    assert order == ["a", "b"] * 3
    assert measured == {"a": [{"run": 2.0}, {"run": 4.0}], "b": [{"run": 3.0}, {"run": 5.0}]}


def test_what_is_short_is_repeated(monkeypatch):
    monkeypatch.setattr(turns, "LEAST_SECONDS", 1e-4)
    calls = []
    assert repeated(lambda: calls.append(1), "cpu")()["run"] > 0
    assert len(calls) > 5


def test_random_models_have_the_shapes_they_are_named_after():
    assert {"demo", "160M", "1B", "3B", "8B"} < SHAPES.keys()
    billions = {"160M": 0.162, "1B": 1.236, "3B": 3.213, "8B": 8.030}
    for name, expected in billions.items():
        model = random_base(name, "meta", torch.bfloat16)
        assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(expected, abs=5e-3)


def test_bytes_that_a_token_needs():
    tied = random_base("tiny", "cpu", torch.float32)
    # Embedding, which is the head; q, k, v, o; gate, up, down; three norms.
    weights = 512 * 32 + 4 * 32 * 32 + 3 * 32 * 64 + 3 * 32
    assert read_per_token(tied) == 4 * weights
    # In each of the seven Linears r (in + out), of two experts out of five.
    factors = 4 * 4 * 64 + 4 * 3 * 96
    assert adapter_bytes(tied, lora_config(4), 4 * factors) == 4 * factors
    assert adapter_bytes(tied, slim_config(4, 5), 5 * 4 * factors + 1000) == 2 * 4 * factors + 1000


def test_a_random_model_is_a_model():
    model = random_base("tiny", "cpu", torch.float32)
    ids = torch.arange(5, 25).unsqueeze(0)
    reference = LlamaForCausalLM(model.config).eval()
    reference.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(model(ids).logits, reference(ids).logits)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert float(model.lm_head.weight.std()) == pytest.approx(0.02, rel=0.05)


def test_adapted_models_share_the_weights():
    base = random_base("tiny", "cpu", torch.float32)
    names = [name for name, _ in base.named_modules()]
    own = {id(parameter) for parameter in base.parameters()}
    for model in (sharing(base), adapted(base, lora_config(2)), adapted(base, slim_config(2, 2))):
        assert own <= {id(parameter) for parameter in model.parameters()}
    assert [name for name, _ in base.named_modules()] == names


def test_limits_and_the_machine_are_told(monkeypatch):
    monkeypatch.setattr(turns, "LEAST_SECONDS", 1e-3)
    rates = limits("cpu", torch.float32, megabytes=1, size=32)
    assert rates.copy_bandwidth > 0 and rates.matrix_rate > 0
    machine = describe_machine("cpu")
    assert machine["device"] == "cpu" and machine["versions"]["torch"] == torch.__version__
    assert machine["versions"]["slim-core"]


def test_every_question_of_clients_is_counted_once():
    asked = []

    def ask(number, variant):
        asked.append((number, variant))
        if number == 2:
            raise OSError("gone")
        return number != 3

    one, four = serve_clients(ask, ["base", "slim"], [1, 4], questions=6, rounds=1)
    # A round that does not count, then one that does, for both numbers of clients.
    assert sorted(asked) == sorted([(n, ("base", "slim")[n % 2]) for n in range(6)] * 4)
    for load, clients in ((one, 1), (four, 4)):
        assert (load.clients, load.answers, load.refused, load.lost) == (clients, 4, 1, 1)
        assert 0 < load.p50 <= load.p99 and load.spread[0] <= load.answers_per_second <= load.spread[1]
    (none,) = serve_clients(lambda number, variant: False, ["base"], [1], questions=1, rounds=1)
    assert (none.answers, none.p50, none.p99, none.answers_per_second) == (0, None, None, 0)
