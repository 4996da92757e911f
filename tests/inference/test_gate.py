# SPDX-License-Identifier: Apache-2.0
"""The gate of SLIM in the engine: by row, in the record, in a reading without an answer, and as a verdict."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from slim_core import set_gate
from slim_core.inference import (
    AS_TRAINED,
    EngineError,
    GateSetting,
    Message,
    Passage,
    Reading,
    RoutingRecord,
    Row,
    Sampling,
    Verdict,
    cache,
    load_engine,
    single_token,
    verdict_of,
)
from slim_core.method import LEVELS
from slim_core.peft_tools import trace_routing
from tests.inference.conftest import LONGER, QUESTION, SHORT, last, save_lora, save_slim, tiny_base
from tests.inference.probe import EngineProbe


SAMPLING = Sampling(max_new_tokens=6)


@pytest.fixture
def make(tmp_path):
    """An engine whose SLIM adapter has the given fields."""

    def engine(**changes):
        base = tiny_base()
        base.save_pretrained(tmp_path / "base")
        from slim_core.demo.chat import train_tokenizer
        from tests.inference.conftest import TEXTS

        train_tokenizer(TEXTS).save_pretrained(tmp_path / "base")
        save_lora(tmp_path / "lora", tiny_base())
        save_slim(tmp_path / "slim", tiny_base(), **changes)
        return load_engine(tmp_path / "base", lora=tmp_path / "lora", slim=tmp_path / "slim", device="cpu")

    return engine


def test_each_row_has_the_strength_that_it_asks_for(make):
    engine = make(yield_strength=0.5)
    asked = [Row("slim", LONGER, True, GateSetting(strength)) for strength in (None, 0.0, 3.0, 0.5)]
    step = last(engine, asked, SAMPLING)
    alone = [last(engine, [row], SAMPLING) for row in asked]
    for index, single in enumerate(alone):
        assert step.rows[index].token_ids == single.rows[0].token_ids
        torch.testing.assert_close(step.routing[index].gate, single.routing[0].gate, atol=1e-4, rtol=0)
    # The first token of a context is closed in any case.
    assert (step.routing[1].gate[:, 1:] == 1).all()
    trained, strong = step.routing[0].gate, step.routing[2].gate
    prompt = step.routing[0].prompt_tokens
    assert (trained[:, :prompt] < 1).any()
    # The first Linears see the same inputs, whatever happens above them.
    assert (strong[0, :prompt] <= trained[0, :prompt]).all() and (strong[0, :prompt] < trained[0, :prompt]).any()
    assert step.rows[0].token_ids == step.rows[3].token_ids


@pytest.mark.parametrize("way", ["one token at a time", "stacked", "in pieces"])
def test_each_row_begins_to_close_where_it_asks_to(make, way, monkeypatch):
    if way == "stacked":
        monkeypatch.setattr(single_token, "MOST_ROWS", 0)
    if way == "in pieces":
        monkeypatch.setattr(cache, "PIECE", 5)
    engine = make(yield_strength=0.5)
    quantiles = (0.99, 0.5, 0.8, 0.999)
    asked = [Row("slim", LONGER, True, GateSetting(quantile=quantile)) for quantile in quantiles]
    own = Row("slim", LONGER, True)
    step = last(engine, [*asked, own, Row("lora", LONGER), Row("base", LONGER)], SAMPLING)
    for index, quantile in enumerate(quantiles):
        set_gate(EngineProbe(engine).base, quantile=quantile)
        alone = last(engine, [own], SAMPLING)
        assert step.rows[index].token_ids == alone.rows[0].token_ids
        for part in ("gate", "reference", "weights"):
            actual, expected = (getattr(each, part) for each in (step.routing[index], alone.routing[0]))
            torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)
    assert step.rows[4].token_ids == step.rows[0].token_ids
    trained, sooner, between, later = (step.routing[index] for index in range(4))
    prompt = trained.prompt_tokens
    assert (sooner.reference < between.reference).all() and (between.reference < trained.reference).all()
    assert (trained.reference < later.reference).all()
    assert (sooner.gate[0, :prompt] <= trained.gate[0, :prompt]).all()
    assert not torch.allclose(sooner.gate, trained.gate, atol=1e-2)


def test_a_quantile_that_is_not_stored_is_a_sentence_and_ends_no_other_row(make):
    engine = make()
    gate, sentence = GateSetting(quantile=0.3), "The quantile is 0.3; it must be from 0.5 to 0.999, which slim stores."
    # Those without a gate do not mind.
    asked = [Row("slim", LONGER, gate=gate), Row("slim", LONGER), Row("lora", LONGER, gate=gate)]
    step = last(engine, asked, SAMPLING)
    assert [row.error for row in step.rows] == [sentence, None, None]
    answer = EngineProbe(engine).encode(QUESTION)
    for ask in (
        lambda: engine.peek(Row("slim", LONGER, gate=gate)),
        lambda: engine.drift(LONGER, answer, ["lora", "slim"], [AS_TRAINED, gate]),
        lambda: engine.score([Passage("Peru", " Lima")], ["slim"], [gate]),
    ):
        with pytest.raises(EngineError) as refused:
            ask()
        assert str(refused.value) == sentence
    row = Row("slim", LONGER, gate=GateSetting(quantile=0.5))
    assert "stores no training distances" in last(make(yield_mode="paper"), [row], SAMPLING).rows[0].error


def test_a_variant_says_which_quantiles_it_stores(make):
    assert [variant.quantiles for variant in make().variants] == [(), (), LEVELS]


def test_readers_begin_to_close_where_they_ask_to(make):
    engine = make(yield_strength=0.5)
    answer = EngineProbe(engine).encode(QUESTION)
    names, gates = ["slim", "base", "slim"], [GateSetting(quantile=0.5), AS_TRAINED, AS_TRAINED]
    passage = Passage(LONGER, "Lima is blue")
    drift, score = engine.drift(LONGER, answer, names, gates), engine.score([passage], names, gates)[0]
    assert not torch.allclose(drift.variants[0].kl, drift.variants[2].kl)
    set_gate(EngineProbe(engine).base, quantile=0.5)
    alone = engine.drift(LONGER, answer, ["slim"]).variants[0]
    torch.testing.assert_close(drift.variants[0].kl, alone.kl, atol=1e-4, rtol=1e-3)
    alone = engine.score([passage], ["slim"])[0]
    torch.testing.assert_close(score.log_probs[0], alone.log_probs[0], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(score.log_probs[0], score.log_probs[2], atol=1e-3)


def test_a_variant_says_how_strong_its_gate_is(make):
    assert [variant.strength for variant in make(yield_strength=2.5).variants] == [None, None, 2.5]
    assert make(yield_mode="paper").variants[2].strength is None


def test_a_gate_that_is_closed_gives_the_bases_answer_by_construction(make):
    engine = make(context_warmup=1000)
    rows = [Row("base", LONGER), Row("slim", LONGER, routing=True), Row("slim", SHORT, routing=True)]
    *_, step, drift = engine.answer(rows, SAMPLING, reading=Reading(("lora", "slim"), LONGER))
    assert step.rows[1].token_ids == step.rows[0].token_ids
    verdict = verdict_of(step.routing[1])
    assert verdict.exact and verdict.kind == "unlike" and verdict.identity == verdict.closed == 1
    assert step.routing[1].complete
    lora, slim = drift.variants
    # Some processors round a row of a batch by where it stands, so the base takes the very place of SLIM.
    _, base = engine.drift(LONGER, step.rows[0].token_ids, ["lora", "base"]).variants
    assert torch.equal(slim.log_ratio, base.log_ratio) and torch.equal(slim.kl, base.kl)
    torch.testing.assert_close(slim.log_ratio, torch.zeros_like(slim.log_ratio), atol=1e-5, rtol=0)
    assert (lora.kl > 1e-3).any()


@pytest.mark.parametrize(
    "changes",
    [
        {"modules_to_save": ["lm_head"]},
        {"trainable_token_indices": {"lm_head": [1, 5]}},
        {"trainable_token_indices": [3, 5]},
        {"target_modules": ["q_proj", "lm_head"], "distance_scope": "token"},
    ],
    ids=["own head", "own rows of the head", "own tokens", "adapted head"],
)
def test_what_an_adapter_changes_beside_its_gated_linears_is_no_construction(make, changes):
    engine = make(**({"context_warmup": 1000} | changes))
    routing = last(engine, [Row("slim", LONGER, routing=True)], SAMPLING).routing[0]
    assert not routing.complete and not verdict_of(routing).exact
    assert not engine.peek(Row("slim", LONGER)).complete


def test_a_reader_has_the_strength_that_it_asks_for(make):
    engine = make(yield_strength=0.5)
    answer = EngineProbe(engine).encode(QUESTION)
    own = engine.drift(LONGER, answer, ["slim"])
    opened = engine.drift(LONGER, answer, ["slim"], [GateSetting(0.0)])
    both = engine.drift(LONGER, answer, ["slim", "slim"], [AS_TRAINED, GateSetting(0.0)])
    assert not torch.allclose(own.variants[0].kl, opened.variants[0].kl)
    for read, alone in zip(both.variants, (own, opened), strict=True):
        torch.testing.assert_close(read.kl, alone.variants[0].kl, atol=1e-4, rtol=1e-3)
    with pytest.raises(EngineError, match="2 readers but 1 gate settings"):
        engine.drift(LONGER, answer, ["slim"] * 2, [AS_TRAINED])


def test_a_gate_that_is_open_is_no_exact_copy(make):
    engine = make(yield_strength=0.0)
    verdict = verdict_of(last(engine, [Row("slim", LONGER, routing=True)], SAMPLING).routing[0])
    assert not verdict.exact and verdict.closed == 0


def test_a_prompt_is_read_without_an_answer(make):
    engine = make(yield_strength=0.5)
    peeked = engine.peek(Row("slim", LONGER))
    whole = last(engine, [Row("slim", LONGER, routing=True)], SAMPLING).routing[0]
    tokens = peeked.prompt_tokens
    assert peeked.gate.shape[1] == tokens == whole.prompt_tokens and peeked.tokens == whole.tokens[:tokens]
    for part in ("weights", "distance", "cluster", "gate", "reference"):
        torch.testing.assert_close(getattr(peeked, part), getattr(whole, part)[:, :tokens], atol=1e-4, rtol=1e-4)
    assert (engine.peek(Row("slim", LONGER, gate=GateSetting(0.0))).gate[:, 1:] == 1).all()
    assert engine.peek(Row("base", LONGER)) is None


def test_a_reading_does_not_wait_for_an_answer(make):
    engine = make()
    steps = engine.answer([Row("base", LONGER)], SAMPLING)
    next(steps)
    assert engine.peek(Row("slim", QUESTION)) is None
    steps.close()
    assert engine.peek(Row("slim", QUESTION)) is not None


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (Row("nobody", QUESTION), "no variant named 'nobody'"),
        (Row("slim", (Message("user", " "),)), "no question"),
        (Row("slim", (Message("user", "blue " * 400),)), "shorten it"),
    ],
)
def test_what_cannot_be_read_is_a_sentence_and_the_next_one_is_read(make, row, sentence):
    engine = make()
    with pytest.raises(EngineError, match=sentence):
        engine.peek(row)
    assert engine.peek(Row("slim", QUESTION)) is not None


def test_contexts_begin_anew_with_each_turn_of_a_user(make):
    engine = make(yield_strength=0.5)
    opening = EngineProbe(engine).tokenizer.convert_tokens_to_ids("<|user|>")
    restarting = make(yield_strength=0.5, turn_opening=[opening])
    turns = (*LONGER, Message("assistant", "It is Lima."), *QUESTION)
    asked = [Row("slim", turns, routing=True)]
    through, anew = (last(each, asked, SAMPLING).routing[0] for each in (engine, restarting))
    assert through.turn == 0 and through.tokens[anew.turn] == "<|user|>"
    assert "".join(through.tokens[anew.turn :]).startswith("<|user|> What is the capital of Peru?")
    ids = EngineProbe(restarting).encode(turns)
    with trace_routing(EngineProbe(restarting).base, rows=[0]) as trace:
        EngineProbe(restarting).logits(ids, "slim")
    torch.testing.assert_close(trace.row(0).gate, anew.gate[:, : len(ids)], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(through.distance[:, anew.turn], anew.distance[:, anew.turn], atol=1e-3)


@pytest.mark.parametrize(
    ("closing", "kind"),
    [(0.8949, "mixed"), (0.8951, "unlike"), (1.0, "unlike"), (0.3049, "like"), (0.3051, "mixed"), (0.0, "like")],
)
def test_a_verdict_is_that_of_the_gate_as_people_see_it(closing, kind):
    assert Verdict(closing, 1.0, 0.5, 0.0, False, closing).kind == kind


def test_a_router_that_likes_identity_experts_does_not_make_a_prompt_unlike_the_training_data():
    weights = torch.tensor([0.1, 0.9]).expand(2, 3, 2)
    numbers = [torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.long), torch.ones(2, 3), torch.ones(2, 3)]
    record = RoutingRecord("slim", ("a", "b", "c"), 2, ("0.up", "1.up"), (0, 1), 1, weights, *numbers)
    verdict = verdict_of(record)
    assert verdict.kind == "like" and verdict.goes_past and verdict.closing == 0
    assert verdict.identity == pytest.approx(0.9)
    assert not verdict_of(replace(record, weights=weights.flip(-1))).goes_past
    closed = verdict_of(replace(record, gate=torch.zeros(2, 3)))
    assert closed.kind == "unlike" and not closed.goes_past
