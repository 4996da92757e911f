# SPDX-License-Identifier: Apache-2.0
"""Long prompts are read piece by piece: the same answers, and a stop that comes meanwhile is heard."""

from __future__ import annotations

import sys

import pytest
import torch
from transformers import LlamaConfig, Phi3Config

from slim_core.inference import Drift, Row, Sampling, Step, Stops, cache
from slim_core.inference.batch import Batch
from slim_core.inference.cache import longest_piece
from slim_core.inference.types import Reading
from tests.inference.conftest import LONGER, QUESTION, SHORT, ids, last, rows


SAMPLING = Sampling(max_new_tokens=12, temperature=1.0, repetition_penalty=1.2, seed=3)


@pytest.fixture
def pieces(monkeypatch) -> list[int]:
    """Pieces of four tokens; how many rows each piece had."""
    counts = []
    read = Batch.read_piece

    def counted(self, shared: bool = False) -> bool:
        count = len(self.answers)
        there = read(self, shared)
        counts.extend([count] * there)
        return there

    monkeypatch.setattr(cache, "PIECE", 4)
    monkeypatch.setattr(Batch, "read_piece", counted)
    return counts


def test_answers_and_routing_are_the_same(engine, pieces, monkeypatch):
    asked = rows(QUESTION, LONGER, SHORT, routing=True)
    in_pieces = last(engine, asked, SAMPLING)
    longest = max(row.prompt_tokens for row in in_pieces.rows)
    assert pieces == [3] * ((longest - 1) // 4)
    monkeypatch.setattr(cache, "PIECE", 512)
    whole = last(engine, asked, SAMPLING)
    assert ids(in_pieces) == ids(whole) and len(pieces) == (longest - 1) // 4
    for index, routing in whole.routing.items():
        torch.testing.assert_close(in_pieces.routing[index].weights, routing.weights, atol=1e-5, rtol=1e-5)
        assert torch.equal(in_pieces.routing[index].cluster, routing.cluster)


@pytest.mark.parametrize("leaving", [0, 1, 2])
def test_a_row_that_is_stopped_leaves_while_the_others_read(leaving, engine, pieces):
    asked = rows(QUESTION, LONGER, SHORT)
    alone = ids(last(engine, [row for i, row in enumerate(asked) if i != leaving], SAMPLING))
    pieces.clear()
    stops = Stops(3)
    steps = engine.answer(asked, SAMPLING, stops)
    next(steps)
    next(steps)
    stops.stop(leaving)
    *_, step = steps
    assert pieces[:3] == [3, 3, 2]
    assert step.rows[leaving].finish_reason == "stopped" and step.rows[leaving].tokens == 0
    assert [row.token_ids for i, row in enumerate(step.rows) if i != leaving] == alone


def test_nothing_more_is_read_once_all_are_stopped(engine, pieces):
    stops = Stops(3)
    steps = engine.answer(rows(LONGER), SAMPLING, stops)
    next(steps)
    next(steps)
    stops.stop_all()
    *_, step = steps
    assert len(pieces) == 2
    assert [(row.finish_reason, row.tokens) for row in step.rows] == [("stopped", 0)] * 3
    assert last(engine, rows(QUESTION)).rows[0].tokens > 0


def test_the_drift_of_a_long_prompt_is_the_same(engine, pieces, monkeypatch):
    answer = last(engine, [Row("base", LONGER)]).rows[0].token_ids
    in_pieces = engine.drift(LONGER, answer, ["lora", "slim"])
    monkeypatch.setattr(cache, "PIECE", 512)
    for a, b in zip(in_pieces.variants, engine.drift(LONGER, answer, ["lora", "slim"]).variants, strict=True):
        torch.testing.assert_close(a.log_ratio, b.log_ratio, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(a.kl, b.kl, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("stopped", [False, True])
def test_a_stop_ends_the_reading_of_the_drift(stopped, engine, pieces):
    stops = Stops(2)
    asked = [Row("base", LONGER), Row("slim", LONGER)]
    items = []
    for item in engine.answer(asked, Sampling(max_new_tokens=6), stops, reading=Reading(("slim",), LONGER)):
        items.append(item)
        if stopped and isinstance(item, Step) and item.done:
            stops.stop_all()
    assert isinstance(items[-1], Step if stopped else Drift)
    steps = [item for item in items if isinstance(item, Step)]
    assert steps[-1].rows[0].tokens > 0


def test_what_was_written_of_a_stopped_answer_is_read(engine):
    stops = Stops(2)
    asked = [Row("base", LONGER), Row("slim", LONGER)]
    for item in engine.answer(asked, Sampling(max_new_tokens=9), stops, reading=Reading(("slim",), LONGER)):
        if isinstance(item, Step) and item.rows[0].tokens == 3:
            stops.stop_all()
    assert isinstance(item, Drift) and len(item.tokens) == 3


def test_positions_that_depend_on_the_length_are_read_at_once():
    assert longest_piece(LlamaConfig()) == cache.PIECE
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "rope_theta": 1e4}
    long = {"rope_type": "longrope", "original_max_position_embeddings": 16} | factors
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "pad_token_id": 0}
    assert longest_piece(Phi3Config(**sizes, max_position_embeddings=64, rope_parameters=long)) == sys.maxsize
    dynamic = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    assert longest_piece(LlamaConfig(rope_parameters=dynamic)) == sys.maxsize
