# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities of chosen tokens and of prompts, against each adapter loaded by PEFT alone, without padding."""

from __future__ import annotations

import pytest
import torch

from slim_core.inference import Row, Sampling, batch, cache
from slim_core.inference.log_probs import log_probs_of
from slim_core.inference.types import RowStep
from tests.inference.conftest import LONGER, QUESTION, engine, folders, last
from tests.inference.probe import EngineProbe
from tests.inference.test_scoring import alone


__all__ = ["alone", "engine", "folders"]
TEXT = "The sea is blue and the"
IDS = (5, 9, 12, 7)


def check(row: RowStep, prompt: list[int], log_probs, likeliest: int, of_prompt: bool) -> None:
    """Every number is that of a forward over the whole text."""
    tokens = [entry.token for entry in row.log_probs]
    assert tuple(tokens[: row.tokens]) == row.token_ids
    text = [*prompt, *tokens]
    right = log_probs(row.variant, text)
    recorded = row.prompt_log_probs + row.log_probs
    assert len(recorded) == len(text if of_prompt else tokens)
    if of_prompt:
        assert recorded[0] == (prompt[0], None, ())
    for place in range(len(text) - len(recorded), len(text)):
        entry = recorded[place - len(text)]
        if place == 0:
            continue
        assert entry.token == text[place]
        assert entry.log_prob == pytest.approx(float(right[place - 1, text[place]]), abs=2e-4)
        values, ids = right[place - 1].topk(likeliest)
        assert [token for token, _ in entry.likeliest] == ids.tolist()
        assert [value for _, value in entry.likeliest] == pytest.approx(values.tolist(), abs=2e-4)


@pytest.mark.parametrize("piece", [3, 512])
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_every_row_says_what_its_variant_says_alone(engine, alone, piece, temperature, monkeypatch):
    monkeypatch.setattr(cache, "PIECE", piece)
    tokenizer, log_probs = alone
    asked = [
        Row("base", (), text=TEXT, log_probs=3, prompt_log_probs=True),
        Row("lora", LONGER, log_probs=2),
        Row("slim", (), text=IDS, log_probs=3, prompt_log_probs=True),
        Row("slim", QUESTION),
        Row("lora", (), text=TEXT + " sun", log_probs=0, prompt_log_probs=True),
    ]
    sampling = Sampling(temperature=temperature, repetition_penalty=1.3, max_new_tokens=5, seed=3)
    step = last(engine, asked, sampling)
    longer = tokenizer.apply_chat_template(
        [message._asdict() for message in LONGER], add_generation_prompt=True, return_dict=False
    )
    prompts = [tokenizer.encode(TEXT), longer, list(IDS), None, tokenizer.encode(TEXT + " sun")]
    for row, request, prompt in zip(step.rows, asked, prompts, strict=True):
        assert row.error is None
        if prompt is None:
            assert row.log_probs == row.prompt_log_probs == ()
        else:
            check(row, prompt, log_probs, request.log_probs, request.prompt_log_probs)


def test_logits_of_a_long_prompt_are_never_there_all_at_once(engine, alone, monkeypatch):
    tokenizer, log_probs = alone
    asked = [Row("slim", (), text=TEXT, log_probs=1, prompt_log_probs=True)]
    monkeypatch.setattr(batch, "LOGITS_AT_ONCE", 2 * EngineProbe(engine).base.config.vocab_size)
    counts, forward = [], batch.Batch._read

    def read(self, count):
        counts.append(count)
        return forward(self, count)

    monkeypatch.setattr(batch.Batch, "_read", read)
    (row,) = last(engine, asked, Sampling(max_new_tokens=1)).rows
    check(row, tokenizer.encode(TEXT), log_probs, 1, True)
    assert max(counts) == 2


def test_the_token_that_ends_an_answer_is_told(engine, alone):
    _, log_probs = alone
    (row,) = last(engine, [Row("base", (), text=IDS)], Sampling(max_new_tokens=3)).rows
    engine.end_tokens = frozenset({row.token_ids[1]})
    (row,) = last(engine, [Row("base", (), text=IDS, log_probs=1)], Sampling(max_new_tokens=3)).rows
    assert (row.tokens, row.finish_reason, len(row.log_probs)) == (1, "end", 2)
    check(row, list(IDS), log_probs, 1, False)


def test_logits_of_minus_infinity(engine):
    logits = torch.full((1, 4), float("-inf"))
    logits[0, 2] = 1.0
    (entry,) = log_probs_of(logits, [1], 9)
    assert entry.log_prob == float("-inf") and entry.likeliest[0] == (2, 0.0) and len(entry.likeliest) == 4
