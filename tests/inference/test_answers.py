# SPDX-License-Identifier: Apache-2.0
"""The stream of steps: states, ends, errors of one row, routing."""

import itertools
import math

import pytest
import torch

from slim_core.base.prompts import Prompts
from slim_core.inference import EngineError, Message, Row, Sampling, Stops
from slim_core.inference.batch import Batch
from slim_core.peft_tools import trace_routing
from tests.inference.conftest import LONGER, QUESTION, SHORT, ids, last, rows
from tests.inference.probe import EngineProbe


def test_a_step_after_every_token(engine):
    steps = list(engine.answer(rows(QUESTION), Sampling(max_new_tokens=8)))
    assert [row.state for row in steps[0].rows] == ["reading"] * 3
    for before, after in itertools.pairwise(steps):
        for a, b in zip(before.rows, after.rows, strict=True):
            assert b.token_ids[: len(a.token_ids)] == a.token_ids and len(b.token_ids) - len(a.token_ids) in (0, 1)
    assert max(row.tokens for row in steps[-1].rows) in (len(steps) - 1, len(steps) - 2)
    assert [step.done for step in steps] == [False] * (len(steps) - 1) + [True]
    for row in steps[-1].rows:
        assert row.tokens == len(row.token_ids) and row.seconds >= row.first_token_seconds > 0
        assert row.finish_reason in ("end", "length")
        assert row.tokens_per_second is None or row.tokens_per_second > 0


def test_the_end_token_ends_and_is_not_part_of_the_answer(engine):
    free = last(engine, rows(LONGER), Sampling(max_new_tokens=20))
    token = free.rows[2].token_ids[5]
    first = free.rows[2].token_ids.index(token)
    engine.end_tokens = frozenset({token})
    row = last(engine, rows(LONGER), Sampling(max_new_tokens=20)).rows[2]
    assert row.finish_reason == "end" and row.token_ids == free.rows[2].token_ids[:first]


def test_the_same_dice_for_all_rows(engine):
    sampling = Sampling(max_new_tokens=20, temperature=1.5, seed=5)
    twice = last(engine, [Row("base", QUESTION), Row("base", QUESTION)], sampling)
    assert twice.rows[0].token_ids == twice.rows[1].token_ids
    other = last(engine, [Row("base", QUESTION)], Sampling(max_new_tokens=20, temperature=1.5, seed=6))
    assert other.rows[0].token_ids != twice.rows[0].token_ids


def test_a_conversation_that_several_rows_share_is_tokenised_once(engine, monkeypatch):
    encoded = []
    encode = Prompts.encode
    monkeypatch.setattr(Prompts, "encode", lambda self, messages: encoded.append(messages) or encode(self, messages))
    asked = [*rows(QUESTION), Row("base", LONGER)]
    step = last(engine, asked, Sampling(max_new_tokens=4))
    assert encoded == [QUESTION, LONGER]
    assert ids(step) == [ids(last(engine, [row], Sampling(max_new_tokens=4)))[0] for row in asked]


def test_what_is_wrong_with_a_row_ends_that_row_alone(engine):
    long = (Message("user", "Lima? " * 400),)
    asked = [Row("base", long), Row("lora", QUESTION), Row("slim", (Message("user", "  "),)), Row("gone", QUESTION)]
    step = last(engine, asked)
    assert [row.finish_reason == "error" for row in step.rows] == [True, False, True, True]
    assert "the model reads and writes at most 256" in step.rows[0].error
    assert "no question" in step.rows[2].error and "'gone'" in step.rows[3].error
    assert ids(step)[1] == ids(last(engine, asked[1:2]))[0]


def test_a_prompt_that_just_fits_gets_the_room_that_is_left(engine):
    words = next(n for n in range(1, 300) if engine.count_tokens((Message("user", "Lima?" * n),)) >= 250)
    messages = (Message("user", "Lima?" * words),)
    engine.end_tokens = frozenset()
    row = last(engine, [Row("slim", messages)], Sampling(max_new_tokens=100)).rows[0]
    assert row.finish_reason == "length" and row.tokens == 256 - engine.count_tokens(messages)


def test_a_row_whose_numbers_are_no_longer_finite_ends_alone(engine):
    alone = ids(last(engine, rows(QUESTION)))
    for module in EngineProbe(engine).base.modules():
        if hasattr(module, "slim_B"):
            for name, parameter in module.slim_B.items():
                if "lora" in name:
                    parameter.data.fill_(math.nan)
    step = last(engine, rows(QUESTION))
    assert step.rows[1].finish_reason == "error" and "no longer finite" in step.rows[1].error
    assert [ids(step)[0], ids(step)[2]] == [alone[0], alone[2]]


def test_out_of_memory_is_a_sentence_and_the_engine_lives(engine, monkeypatch):
    expected = ids(last(engine, rows(QUESTION)))
    original, calls = Batch.forward, []

    def forward(self):
        calls.append(1)
        if len(calls) == 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return original(self)

    monkeypatch.setattr(Batch, "forward", forward)
    step = last(engine, rows(QUESTION))
    for row, whole in zip(step.rows, expected, strict=True):
        assert row.finish_reason == "error" and "is used up: compare fewer answers" in row.error
        assert row.token_ids == whole[:3]
    assert ids(last(engine, rows(QUESTION))) == expected


def test_a_failing_model_is_an_error_and_the_engine_lives(engine, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Batch, "forward", lambda self: 1 / 0)
        with pytest.raises(EngineError, match="The model failed while it answered: division by zero"):
            last(engine, rows(QUESTION))
    assert last(engine, rows(QUESTION)).rows[0].error is None


def test_closing_frees_the_model_and_leaves_nothing_behind(engine):
    stream = engine.answer(rows(QUESTION, routing=True), Sampling(max_new_tokens=50))
    for _ in range(4):
        next(stream)
    stream.close()
    context = next(m.context for m in EngineProbe(engine).base.modules() if hasattr(m, "slim_A"))
    assert context.rows is None and context.trace is None
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    assert last(engine, rows(QUESTION)).done


def test_between_two_steps_the_callers_thread_is_not_in_inference_mode(engine):
    stream = engine.answer(rows(QUESTION), Sampling(max_new_tokens=5))
    next(stream)
    next(stream)
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    stream.close()


def test_stopped_before_it_began(engine):
    stops = Stops(3)
    stops.stop(1)
    step = last(engine, rows(QUESTION), stops=stops)
    assert step.rows[1].finish_reason == "stopped" and step.rows[1].tokens == 0
    assert step.rows[0].tokens > 0
    stops.stop_all()
    assert [r.finish_reason for r in last(engine, rows(QUESTION), stops=stops, batched=False).rows] == ["stopped"] * 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"temperature": -1.0}, "temperature must be between 0 and 2"),
        ({"temperature": math.nan}, "temperature"),
        ({"top_p": 0.0}, "top_p must be above 0"),
        ({"top_k": -1}, "top_k"),
        ({"min_p": 2.0}, "min_p"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"seed": -1}, "seed"),
    ],
)
def test_settings_out_of_range_are_a_sentence(engine, change, words):
    with pytest.raises(EngineError, match=words):
        engine.answer(rows(QUESTION), Sampling(**change))


def test_stop_strings_across_tokens_and_what_follows_is_cut(engine):
    free = last(engine, rows(LONGER), Sampling(max_new_tokens=20)).rows[1].text
    stop = free[9:15]
    step = last(engine, rows(LONGER), Sampling(max_new_tokens=20, stop=("never there", stop)))
    assert step.rows[1].finish_reason == "stop_string"
    assert step.rows[1].text == free[: free.index(stop)]


def test_repetition_penalty_does_not_count_padding(engine):
    """Token 0, with which the batch is padded, is by far the most likely as long as nothing counts it."""
    EngineProbe(engine).base.lm_head.register_forward_hook(
        lambda m, args, out: out.index_fill(-1, torch.tensor([0]), 30.0)
    )
    sampling = Sampling(max_new_tokens=4, repetition_penalty=10.0)
    together = ids(last(engine, rows(SHORT, LONGER, SHORT), sampling))
    assert [tokens[0] for tokens in together] == [0, 0, 0]
    assert together[0] == ids(last(engine, rows(SHORT)[:1], sampling))[0] and together[0][1] != 0


# -- routing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [0.0, 100.0])
def test_routing_is_that_of_one_plain_forward_over_the_whole(engine, every):
    asked = rows(QUESTION, LONGER, SHORT, routing=True)
    *_, step = engine.answer(asked, Sampling(max_new_tokens=9), routing_every=every)
    assert sorted(step.routing) == [1, 2]
    routing, row = step.routing[2], step.rows[2]
    prompt = EngineProbe(engine).encode(SHORT)
    everything = [*prompt, *row.token_ids]
    read = everything if row.finish_reason == "end" else everything[:-1]
    with trace_routing(EngineProbe(engine).base, rows=[0]) as trace:
        EngineProbe(engine).logits(read, "slim")
    whole = trace.row(0)
    kept = [i for i, name in enumerate(whole.modules) if "lm_head" not in name]
    assert list(routing.modules) == [whole.modules[i] for i in kept]
    torch.testing.assert_close(routing.weights, whole.weights[kept], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(routing.distance, whole.distance[kept], rtol=1e-4, atol=1e-4)
    assert torch.equal(routing.cluster, whole.cluster[kept])
    assert routing.prompt_tokens == len(prompt) == row.prompt_tokens
    assert len(routing.tokens) == len(read) == routing.weights.shape[1]
    # Random weights may answer in bytes that are no text, which a whole text and single tokens show differently.
    assert "".join(routing.tokens[: len(prompt)]) == EngineProbe(engine).tokenizer.decode(prompt)
    assert routing.blocks == (0,) * 7 + (1,) * 7 and routing.num_experts == 3
    lora = step.routing[1]
    assert (lora.weights == 1).all() and (lora.cluster == -1).all()


def test_routing_comes_from_time_to_time_for_those_who_asked(engine):
    asked = [Row("slim", QUESTION, routing=True), Row("slim", LONGER)]
    steps = list(engine.answer(asked, Sampling(max_new_tokens=6), routing_every=0.0))
    assert all(set(step.routing) == {0} for step in steps[1:])
    lengths = [len(step.routing[0].tokens) for step in steps[1:]]
    assert lengths == sorted(lengths) and lengths[0] == steps[0].rows[0].prompt_tokens
    rare = list(engine.answer(asked, Sampling(max_new_tokens=6), routing_every=100.0))
    assert set(rare[-1].routing) == {0} and not any(step.routing for step in rare[:3])


def test_routing_survives_that_other_rows_leave(engine):
    stops = Stops(3)
    for step in engine.answer(rows(QUESTION, routing=True), Sampling(max_new_tokens=15), stops, routing_every=0.0):
        if step.rows[0].tokens == 3:
            stops.stop(0)
        if step.rows[1].tokens == 6:
            stops.stop(1)
    alone = last(engine, rows(QUESTION, routing=True)[2:], Sampling(max_new_tokens=15)).routing[0]
    torch.testing.assert_close(step.routing[2].weights, alone.weights, rtol=1e-4, atol=1e-5)
    assert len(step.routing[1].tokens) == step.rows[1].prompt_tokens + 6


def test_one_at_a_time_has_the_same_routing(engine):
    together = last(engine, rows(QUESTION, routing=True)).routing[2]
    single = last(engine, rows(QUESTION, routing=True), batched=False).routing[2]
    torch.testing.assert_close(together.weights, single.weights, rtol=1e-4, atol=1e-5)
