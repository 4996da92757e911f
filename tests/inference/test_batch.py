# SPDX-License-Identifier: Apache-2.0
"""Rows of one batch answer as they would alone."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from slim_core.inference import Message, Row, Sampling, Stops, load_engine
from tests.inference.conftest import LONGER, QUESTION, SHORT, ids, last, logits_of, rows, save_dora, tiny_base
from tests.inference.probe import EngineProbe


SETTINGS = [
    Sampling(max_new_tokens=16),
    Sampling(max_new_tokens=16, repetition_penalty=1.5),
    Sampling(max_new_tokens=16, temperature=0.9, seed=3),
    Sampling(max_new_tokens=16, temperature=1.3, top_k=20, top_p=0.9, min_p=0.02, repetition_penalty=1.2, seed=4),
]


@pytest.mark.parametrize("sampling", SETTINGS)
def test_each_row_of_a_batch_is_what_it_is_alone(engine, sampling):
    together = ids(last(engine, rows(QUESTION, LONGER, SHORT), sampling))
    for row, expected in zip(rows(QUESTION, LONGER, SHORT), together, strict=True):
        assert ids(last(engine, [row], sampling)) == [expected]
    assert len(set(together)) == 3


@pytest.mark.parametrize("sampling", SETTINGS)
def test_one_at_a_time_gives_the_same_tokens(engine, sampling):
    asked = rows(QUESTION, LONGER, SHORT)
    assert ids(last(engine, asked, sampling, batched=False)) == ids(last(engine, asked, sampling))


def test_the_order_of_the_rows_changes_nothing(engine):
    asked = rows(QUESTION, LONGER, SHORT)
    sampling = Sampling(max_new_tokens=16, temperature=1.0, seed=1)
    backwards = ids(last(engine, asked[::-1] + asked[:1], sampling))
    straight = ids(last(engine, asked, sampling))
    assert backwards == [*straight[::-1], straight[0]]


def test_logits_are_those_of_each_row_alone(engine, monkeypatch):
    asked = rows(QUESTION, LONGER, SHORT)
    together = logits_of(engine, asked, monkeypatch)
    for index, row in enumerate(asked):
        alone = logits_of(engine, [row], monkeypatch)
        assert len(alone) > 3
        for step, values in enumerate(alone):
            torch.testing.assert_close(together[step][index], values[0], atol=1e-5, rtol=1e-5)


MIXED = [("base", LONGER), ("lora", QUESTION), ("dora", LONGER), ("slim", SHORT), ("dora", QUESTION), ("base", SHORT)]


@pytest.fixture
def with_dora(engine, tmp_path):
    """Base, LoRA and SLIM, and a DoRA whose magnitudes are not those that it begins with."""
    save_dora(tmp_path / "dora", tiny_base())
    assert engine.attach(tmp_path / "dora", name="dora").label == "DoRA"
    return engine


@pytest.mark.parametrize("sampling", SETTINGS)
def test_rows_of_base_lora_dora_and_slim_are_each_what_they_are_alone(with_dora, sampling):
    asked = [Row(name, messages) for name, messages in MIXED]
    together = ids(last(with_dora, asked, sampling))
    for row, expected in zip(asked, together, strict=True):
        assert ids(last(with_dora, [row], sampling)) == [expected]
    assert len(set(together)) == len(MIXED)


def test_logits_beside_a_dora_are_those_of_each_row_alone(with_dora, monkeypatch):
    asked = [Row(name, messages) for name, messages in MIXED]
    together = logits_of(with_dora, asked, monkeypatch)
    # A product over more rows may be summed in another order: by processor, up to 1.4e-5 was seen.
    for index, row in enumerate(asked):
        for step, values in enumerate(logits_of(with_dora, [row], monkeypatch)):
            torch.testing.assert_close(together[step][index], values[0], atol=5e-5, rtol=5e-5)


def test_greedy_is_what_transformers_generates(engine, folders):
    base = AutoModelForCausalLM.from_pretrained(folders.base).eval()
    prompt = torch.tensor([EngineProbe(engine).encode(LONGER)])
    expected = base.generate(prompt, max_new_tokens=16, do_sample=False)[0, prompt.shape[1] :].tolist()
    step = last(engine, [*rows(QUESTION)[:1], Row("base", LONGER)], Sampling(max_new_tokens=16))
    tokens = list(step.rows[1].token_ids)
    assert tokens == [token for token in expected if token != base.config.eos_token_id]


def test_rows_that_end_early_leave_and_the_others_go_on(engine):
    alone = ids(last(engine, [rows(SHORT)[2]], Sampling(max_new_tokens=30)))[0]
    stops = Stops(3)
    lengths = []
    for step in engine.answer(rows(LONGER, QUESTION, SHORT), Sampling(max_new_tokens=30), stops):
        lengths.append([row.tokens for row in step.rows])
        # The longest prompt goes first, so that the padding of the others goes with it.
        if step.rows[0].tokens == 4:
            stops.stop(0)
        if step.rows[1].tokens == 9:
            stops.stop(1)
    assert [row.finish_reason for row in step.rows[:2]] == ["stopped", "stopped"]
    assert [row.tokens for row in step.rows[:2]] == [4, 9]
    assert step.rows[2].token_ids == alone


def test_each_variant_goes_on_with_its_own_history(engine):
    first = last(engine, rows(QUESTION), Sampling(max_new_tokens=6))
    second = [
        (*QUESTION, Message("assistant", row.text or "-"), Message("user", "And the sea?")) for row in first.rows
    ]
    together = last(engine, rows(*second))
    for row, messages, step_row in zip(rows(*second), second, together.rows, strict=True):
        assert step_row.prompt_tokens == engine.count_tokens(messages)
        assert ids(last(engine, [row])) == [step_row.token_ids]


def test_the_base_among_adapters_is_the_base_without(engine, folders):
    bare = load_engine(folders.base, device="cpu")
    assert ids(last(bare, [Row("base", LONGER)])) == ids(last(engine, rows(LONGER)))[:1]
