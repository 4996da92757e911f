# SPDX-License-Identifier: Apache-2.0
"""A prompt that begins with what a kept row has read is answered as if it were read from its beginning."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import AutoModelForCausalLM, MistralConfig

from slim_core.demo.chat import train_tokenizer
from slim_core.inference import AS_TRAINED, GateSetting, Row, Sampling, Stops, cache, kept, load_engine
from slim_core.inference.batch import Batch
from tests.inference.conftest import TEXTS, last, save_slim, tiny_base
from tests.inference.probe import EngineProbe
from tests.inference.test_batch import SETTINGS
from tests.inference.test_sharing import answers, assert_same, drive


NAMES = ("base", "lora", "slim", "turns", "token")
OPENING = (7, 5, 7)
ALL = 10**9
# By how many tokens the prompts of a conversation are longer for some variants.
MORE = (0, 1, 2, 5, 9)


@pytest.fixture(scope="module")
def more(tmp_path_factory, folders):
    """A SLIM whose contexts begin anew with each turn, and one of single tokens."""
    root = tmp_path_factory.mktemp("more")
    save_slim(root / "turns", tiny_base(), turn_opening=list(OPENING), context_warmup=2)
    save_slim(root / "token", tiny_base(), distance_scope="token")
    return root


@pytest.fixture
def engine(engine, more):
    for name in ("turns", "token"):
        engine.attach(more / name, name=name)
    engine.end_tokens = frozenset()
    return engine


@pytest.fixture
def reads(monkeypatch):
    """Of each batch of prompts, how much of its longest prompt was read."""
    counts, original = [], Batch.__init__

    def begin(self, model, scopes, drafts):
        original(self, model, scopes, drafts)
        counts.append((max(len(draft.prompt) for draft in drafts), self.unread))

    monkeypatch.setattr(Batch, "__init__", begin)
    return counts


def words(seed, count):
    """Token ids of the tiny base that open no turn."""
    dice = random.Random(seed)
    return tuple(dice.choice([n for n in range(3, 60) if n not in OPENING]) for _ in range(count))


def asked(names, prompts, routing=False, gates=None):
    return [
        Row(name, (), routing, AS_TRAINED if gates is None else gates[place], text=prompt)
        for place, (name, prompt) in enumerate(zip(names, prompts, strict=True))
    ]


def conversation(engine, names=NAMES, turns=4, sampling=None, routing=True, gates=None, seed=0):
    """Yields what is told of several turns, in which each variant goes on with its own answers."""
    so_far = [words(seed, 5 + 9 * seed) for _ in names]
    for turn in range(turns):
        so_far = [
            text + OPENING + words(seed + turn, 20 + turn + MORE[place % len(MORE)])
            for place, text in enumerate(so_far)
        ]
        steps = []
        for step in engine.answer(asked(names, so_far, routing, gates), sampling or Sampling(max_new_tokens=14)):
            steps.append(step)
            yield step
        so_far = [text + row.token_ids for text, row in zip(so_far, answers(steps).rows, strict=True)]


def ends(steps):
    """The last step of each turn."""
    return [step for step in steps if step.done]


def assert_all_same(together, alone):
    for one, other in zip(ends(together), ends(alone), strict=True):
        assert_same([one], [other])


def once(engine, names, prompts, routing=True, tokens=6, keep=True, **sampling):
    settings = Sampling(max_new_tokens=tokens, **sampling)
    return list(engine.answer(asked(names, prompts, routing), settings, keep=keep))


@pytest.mark.parametrize(("sampling", "piece"), [*((sampling, 512) for sampling in SETTINGS), (SETTINGS[3], 12)])
def test_a_conversation_is_gone_on_from_where_it_was(engine, reads, sampling, piece, monkeypatch):
    monkeypatch.setattr(cache, "PIECE", piece)
    alone = list(conversation(engine, sampling=sampling))
    assert all(read == whole for whole, read in reads)
    reads.clear()
    engine.keep_at_most(ALL)
    assert_all_same(conversation(engine, sampling=sampling), alone)
    # The last token that was chosen, the opening and the most words.
    assert [read for _, read in reads] == [5 + 3 + 29, 1 + 3 + 30, 1 + 3 + 31, 1 + 3 + 32]


@pytest.mark.parametrize("seed", range(4))
def test_callers_in_one_batch_go_on_from_their_own(engine, reads, seed):
    some = [
        (NAMES, True, None),
        (("slim", "turns"), True, [GateSetting(0.0), GateSetting(1.5)]),
        (("base", "lora"), False, None),
        (("turns",), True, [GateSetting(0.5, 0.75)]),
        (("token", "slim"), True, None),
    ]
    settings = [*SETTINGS, Sampling(max_new_tokens=3)]

    def talks():
        return [
            conversation(engine, names, 3, settings[index], routing, gates, seed=index)
            for index, (names, routing, gates) in enumerate(some)
        ]

    alone = [list(talk) for talk in talks()]
    engine.keep_at_most(ALL)
    reads.clear()
    for one, other in zip(drive(talks(), seed), alone, strict=True):
        assert_all_same(one, other)
    assert any(read < whole for whole, read in reads)


def test_an_opening_may_go_across_the_place_where_it_is_gone_on(engine, reads):
    names = ("turns",) * 4
    before = [words(row, 20 + row) + OPENING + words(row, 8) + OPENING[:2] for row in range(4)]
    # As much of it is held as the row needs; what is to be read differs.
    behind = [text + OPENING[2:] + words(9 + row, 4 + row) for row, text in enumerate(before)]
    alone = once(engine, names, behind)
    engine.keep_at_most(ALL)
    once(engine, names, before, tokens=1)
    assert_same(once(engine, names, behind), alone)
    assert reads[-1][1] == 1 + 7


def test_an_opening_that_was_read_does_not_open_its_turn_again(engine, reads):
    before = words(1, 20) + OPENING + words(2, 2)
    behind = [before + words(9 + row, 4 + 4 * row) for row in range(3)]
    alone = once(engine, ("turns",) * 3, behind)
    engine.keep_at_most(ALL)
    once(engine, ("turns",), [before], tokens=1)
    assert_same(once(engine, ("turns",) * 3, behind), alone)
    assert reads[-1][1] == 12


def test_an_earlier_turn_that_was_edited_is_read_anew_and_what_came_before_is_not(engine, reads):
    names = ("base", "lora", "turns", "token")
    first = words(1, 30) + OPENING + words(2, 12)
    second = first + words(3, 9) + OPENING + words(4, 15)
    edited = first + words(3, 9) + OPENING + words(5, 8)
    alone = once(engine, names, [edited] * 4, seed=4, temperature=0.8)
    engine.keep_at_most(ALL)
    once(engine, names, [first] * 4)
    once(engine, names, [second] * 4)
    assert_same(once(engine, names, [edited] * 4, seed=4, temperature=0.8), alone)
    # From the last token of the turn's opening on.
    assert reads[-1] == (len(edited), 1 + 8)


def test_a_prompt_that_is_asked_again_is_read_from_its_last_turn_on(engine, reads):
    prompt = words(1, 30) + OPENING + words(2, 12)
    alone = [once(engine, ("turns", "base"), [prompt] * 2, seed=seed, temperature=1.0) for seed in range(3)]
    engine.keep_at_most(ALL)
    for seed in range(3):
        assert_same(once(engine, ("turns", "base"), [prompt] * 2, seed=seed, temperature=1.0), alone[seed])
    assert [read for _, read in reads[-2:]] == [1 + 12] * 2


def test_visitors_who_begin_alike_learn_nothing_of_each_other(engine, reads):
    system = words(1, 40)
    mine, theirs = (system + OPENING + words(seed, 10) for seed in (2, 3))
    alone = once(engine, ("base", "turns"), [theirs] * 2)
    engine.keep_at_most(ALL)
    once(engine, ("base", "turns"), [mine] * 2)
    steps = once(engine, ("base", "turns"), [theirs] * 2)
    assert reads[-1] == (len(theirs), 1 + 10)
    assert_same(steps, alone)
    assert [row.prompt_tokens for row in answers(steps).rows] == [len(theirs)] * 2


def test_a_routing_that_was_not_recorded_is_read_anew(engine, reads):
    prompt = words(1, 30) + OPENING + words(2, 12)
    longer = prompt + OPENING + words(3, 5)
    alone = once(engine, ("turns",), [longer])
    engine.keep_at_most(ALL)
    once(engine, ("turns",), [prompt], routing=False)
    assert_same(once(engine, ("turns",), [longer]), alone)
    assert reads[-1] == (len(longer), len(longer))
    # Who wants none may begin there, and what is recorded now is not lost by it.
    once(engine, ("turns",), [longer + OPENING + words(4, 5)], routing=False)
    assert reads[-1][1] < len(longer)
    assert_same(once(engine, ("turns",), [longer]), alone)
    assert reads[-1][1] < len(longer)


def test_log_probabilities_of_a_prompt_need_all_of_it(engine, reads):
    row = Row("slim", (), text=words(1, 40), log_probs=0, prompt_log_probs=True)
    engine.keep_at_most(ALL)
    first, again = (last(engine, [row], Sampling(max_new_tokens=3)) for _ in range(2))
    assert reads[-1] == (40, 40)
    assert len(again.rows[0].prompt_log_probs) == 40
    assert first.rows[0].prompt_log_probs == again.rows[0].prompt_log_probs


def test_the_gate_that_wrote_a_row_is_part_of_it(engine, reads):
    prompt = words(1, 40)
    engine.keep_at_most(ALL)
    last(engine, asked(("token",), [prompt], gates=[GateSetting(0.0)]))
    last(engine, asked(("token",), [prompt], gates=[GateSetting(2.0)]))
    assert reads[-1] == (40, 40)
    last(engine, asked(("token",), [prompt], gates=[GateSetting(0.0)]))
    assert reads[-1] == (40, 1)
    for quantile, read in ((0.5, 40), (0.9, 40), (0.5, 1)):
        last(engine, asked(("token",), [prompt], gates=[GateSetting(quantile=quantile)]))
        assert reads[-1] == (40, read)


def test_when_an_adapter_comes_or_goes_all_is_forgotten(engine, more, reads):
    engine.keep_at_most(ALL)
    for change in (lambda: engine.attach(more / "token", name="late"), lambda: engine.detach("late")):
        once(engine, ("base",), [words(1, 40)])
        assert engine.memory().kept > 0
        change()
        assert engine.memory().kept == 0
    once(engine, ("base",), [words(1, 40)])
    assert reads[-1] == (40, 40)


def test_the_least_recently_used_go_first(engine, reads):
    engine.keep_at_most(ALL)
    prompts = [words(seed, 40) for seed in range(3)]
    once(engine, ("slim",), prompts[:1])
    size = engine.memory().kept
    # Two rows, of which one has a longer answer.
    engine.keep_at_most(int(2.5 * size))
    once(engine, ("slim",), prompts[1:2])
    once(engine, ("slim",), [prompts[0] + words(5, 5)], tokens=1)
    once(engine, ("slim",), prompts[2:])
    assert size < engine.memory().kept <= 2.5 * size
    reads.clear()
    once(engine, ("slim",), [prompts[0] + words(5, 9)], tokens=1)
    once(engine, ("slim",), [prompts[1] + words(5, 9)], tokens=1)
    assert [read < whole for whole, read in reads] == [True, False]
    engine.keep_at_most(0)
    assert engine.memory().kept == 0
    once(engine, ("slim",), prompts[:1])
    assert engine.memory().kept == 0


def test_answers_that_nobody_will_go_on_from_are_not_kept(engine, reads):
    engine.keep_at_most(ALL)
    once(engine, ("slim",), [words(0, 40)], keep=False)
    assert engine.memory().kept == 0


def test_stopped_and_closed_answers_leave_what_others_go_on_from_intact(engine, reads, monkeypatch):
    monkeypatch.setattr(cache, "PIECE", 4)
    first, names = words(1, 40), ("base", "turns", "lora")
    later = [first + OPENING + words(2, 9 + row) for row in range(3)]
    alone = once(engine, names, later)
    engine.keep_at_most(ALL)
    once(engine, names, [first] * 3)
    stops = Stops(3)
    stopped = engine.answer(asked(names, later, True), Sampling(max_new_tokens=9), stops)
    next(stopped)
    stops.stop(1)
    *_, step = stopped
    assert [row.finish_reason for row in step.rows] == ["length", "stopped", "length"]
    closed = engine.answer(asked(names, later, True), Sampling(max_new_tokens=9))
    for _ in range(2):
        next(closed)
    closed.close()
    assert_same(once(engine, names, later), alone)
    assert EngineProbe(engine).in_line == 0


def test_where_the_memory_is_used_up_kept_rows_go_first(engine, monkeypatch):
    engine.keep_at_most(ALL)
    once(engine, ("base",), [words(1, 40)])
    original, failed = Batch._read, []

    def read(self, count):
        if not failed:
            failed.append(True)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return original(self, count)

    monkeypatch.setattr(Batch, "_read", read)
    steps = once(engine, ("base",), [words(2, 10)])
    assert failed and answers(steps).rows[0].error is None and engine.memory().kept == 0


def test_a_model_whose_caches_have_a_window_keeps_nothing(tmp_path):
    config = MistralConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=8,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    train_tokenizer(TEXTS).save_pretrained(tmp_path)
    engine = load_engine(tmp_path, device="cpu")
    engine.keep_at_most(ALL)
    once(engine, ("base",), [words(1, 40)])
    assert engine.memory().kept == 0


def test_of_many_kept_rows_a_few_are_looked_at(engine, reads, monkeypatch):
    """Those which begin alike are many, and the one that the prompt goes on from is found all the same."""
    system = words(1, 20)
    prompts = [system + OPENING + words(seed, 12) for seed in range(2, 30)]
    engine.keep_at_most(ALL)
    for prompt in prompts:
        once(engine, ("turns",), [prompt], tokens=1)
    looked, original = [], kept._common
    monkeypatch.setattr(kept, "_common", lambda *texts: looked.append(texts) or original(*texts))
    for prompt in prompts:
        once(engine, ("turns",), [prompt + words(40, 4)], tokens=1)
        assert reads[-1][1] == 4
    assert len(looked) <= 3 * kept.NEIGHBOURS * len(prompts)
