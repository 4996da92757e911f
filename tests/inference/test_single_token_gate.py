# SPDX-License-Identifier: Apache-2.0
"""The gate of one token in Python's numbers, against `method/gate.py`, for every way to yield."""

from __future__ import annotations

import pytest
import torch

from slim_core import SlimConfig
from slim_core.inference.single_token_router import TokenGate, TokenInput, TokenRouter
from slim_core.method import Router
from slim_core.method.contexts import Sequences
from slim_core.method.gate import EarlierExcess, Yielding
from slim_core.method.routing import cluster_tables, route


ROWS, CHANNELS, EXPERTS = 8, 6, 3
# From far within the reference to far beyond it.
SIZES = torch.tensor([0.1, 1.0, 1.4, 1.6, 1.8, 2.0, 3.0, 100.0])
REFERENCES = torch.tensor([0.5, 7.0])


@pytest.mark.parametrize("strength", [0.0, 0.5, 4.0, 20.0])
@pytest.mark.parametrize("warmup", [0, 1])
@pytest.mark.parametrize("earlier", [None, 0, 2])
@pytest.mark.parametrize("scope", ["token", "context"])
@pytest.mark.parametrize("mode", ["gate", "calibrated", "paper"])
def test_the_gate_of_one_token_is_that_of_many(mode, scope, earlier, warmup, strength):
    config = SlimConfig(
        num_experts=EXPERTS,
        num_identity=2,
        top_k=2,
        yield_mode=mode,
        distance_scope=scope,
        carry_up=earlier is not None,
        context_warmup=warmup,
    )
    contextual = scope == "context"
    tables = cluster_tables(torch.zeros(1, CHANNELS), torch.ones(1, CHANNELS))
    router = Router(torch.randn(EXPERTS + 2, CHANNELS), torch.randn(EXPERTS + 2))
    references = None if mode == "paper" else REFERENCES
    x = SIZES[:, None] * torch.randn(ROWS, CHANNELS).sign()
    sequences = Sequences(ROWS, 1, torch.device("cpu"))
    before = None
    if config.carries_up:
        excesses = sequences.excess_sum("default")
        excesses.total, excesses.routers = torch.rand(ROWS, 1) * (earlier or 0), earlier
        before = EarlierExcess(excesses.total[:, 0].clone(), earlier)
    first = {"bucket": torch.zeros(ROWS, dtype=torch.int64), "length": torch.ones(ROWS), "earlier": before}
    many = route(
        x,
        tables,
        router,
        num_experts=EXPERTS,
        top_k=2,
        statistic="rms",
        yielding=Yielding.of(config, strength, references, **(first if contextual else {})),
        context=x if contextual else None,
    )
    token_router = TokenRouter(config, tables, router, 1, "key", "default")
    gate = TokenGate(strength, None if references is None else references.tolist())
    token_input = TokenInput(x, sequences)
    token_router.begin(token_input)
    for row in range(ROWS):
        token = token_router.of_row(row, token_input, gate)
        assert token.gate == pytest.approx(many.gate[row].item(), abs=1e-5)
        assert token.weights == pytest.approx(many.weights[row].tolist(), abs=1e-5, rel=1e-4)
    if config.carries_up:
        torch.testing.assert_close(excesses.total[:, 0], before.total + many.excess)
        assert excesses.routers == earlier + 1
