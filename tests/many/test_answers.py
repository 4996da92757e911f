# SPDX-License-Identifier: Apache-2.0
"""A list of prompts on a real model: the same answers, verdicts and drift as when each is asked alone."""

import threading

import pytest

from slim_core.base.errors import EngineError
from slim_core.inference import AS_TRAINED, GateSetting, Message, Row, Sampling, verdict_of
from slim_core.many import Respondent, ask_all, read_lines, read_prompts
from tests.inference.conftest import QUESTION, engine, folders, ids, last, rows
from tests.inference.probe import EngineProbe


__all__ = ["engine", "folders"]
SAMPLING = Sampling(max_new_tokens=8)


def askers(engine, gate=AS_TRAINED):
    return [Respondent(v.name, v, gate if v.strength is not None else AS_TRAINED) for v in engine.variants]


def test_each_prompt_is_answered_as_if_it_were_alone(engine):
    prompts = read_lines("What is the capital of Peru?\nThe sea is blue.", "here")
    first, second = ask_all(prompts, askers(engine), "", engine.answer, SAMPLING)
    step = last(engine, rows(QUESTION, routing=True), SAMPLING)
    assert [answer.text for answer in first.answers] == [row.text for row in step.rows]
    assert [answer.tokens for answer in first.answers] == [row.tokens for row in step.rows]
    base, lora, slim = first.answers
    record = step.routing[2]
    assert slim.verdict == verdict_of(record) and slim.identity == pytest.approx(
        float(record.identity[:, record.prompt_tokens :].mean())
    )
    assert (base.identity, base.log_ratio, base.verdict, lora.identity, lora.verdict) == (None, None, None, 0.0, None)
    past = slim.past_lora
    assert (past.tokens, past.prompt_tokens) == (record.tokens, record.prompt_tokens) and lora.past_lora is None
    assert past.by_token == pytest.approx(record.identity.mean(dim=0).tolist(), abs=1e-5)
    for block, share in enumerate(past.by_block):
        # The token that opens the turn says nothing about it.
        of_block = [i for i, b in enumerate(record.blocks) if b == block]
        assert share == pytest.approx(float(record.identity[of_block, record.turn + 1 :].mean()), abs=1e-5)
    assert len(past.by_block) == 2 and len(set(past.by_token)) > 2
    drift = engine.drift(QUESTION, ids(step)[0], ["lora", "slim"])
    for answer, read in zip((lora, slim), drift.variants, strict=True):
        assert answer.log_ratio == pytest.approx(float(read.log_ratio.double().sum()), abs=1e-6)
        assert answer.mean_kl == pytest.approx(float(read.kl.double().mean()), abs=1e-6)
    assert (second.number, second.prompt, second.place) == (2, "The sea is blue.", "here, line 2")


def test_a_prompt_that_fails_is_a_row_with_a_sentence(engine):
    prompts = read_lines(f"{'Lima? ' * 300}\nLima", "here")
    long, short = ask_all(prompts, askers(engine), "", engine.answer, SAMPLING)
    assert long.failed and all("shorten it" in answer.error for answer in long.answers)
    assert not short.failed and all(answer.error is None and answer.log_ratio is None for answer in short.answers[:1])

    def out_of_memory_once(requested, sampling, **options):
        if requested[0].messages[-1].content == "Lima":
            raise EngineError("The memory is used up.")
        return engine.answer(requested, sampling, **options)

    failed, fine = ask_all(read_lines("Lima\nPeru", "here"), askers(engine), "", out_of_memory_once, SAMPLING)
    assert (failed.error, failed.answers, failed.failed) == ("The memory is used up.", (), True)
    assert len(fine.answers) == 3 and not fine.failed


def test_gates_systems_and_conversations_reach_the_engine(engine):
    content = b'[{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}, '
    content += b'{"role": "user", "content": "Lima"}]}, {"prompt": "Lima", "system": "Own."}]'
    asked = []

    def listen(requested, sampling, reading):
        asked.append((requested, reading))
        return engine.answer(requested, sampling, reading=reading)

    results = list(
        ask_all(read_prompts(content, "a.json"), askers(engine, GateSetting(0.0)), "Usual.", listen, SAMPLING)
    )
    talk = (Message("system", "Usual."), Message("user", "Hi"), Message("assistant", "Yes"), Message("user", "Lima"))
    (requested, reading), (other, _) = asked
    assert requested[0] == Row("base", talk) and requested[2] == Row("slim", talk, routing=True, gate=GateSetting(0.0))
    assert reading.messages == talk and reading.gates == (AS_TRAINED, GateSetting(0.0))
    assert other[0].messages == (Message("system", "Own."), Message("user", "Lima"))
    assert [r.answers[2].verdict.closed for r in results] == [0, 0] and results[0].answers[2].gate.strength == 0


def test_others_are_answered_between_two_prompts(engine):
    """Somebody who gets in line while the first prompt is answered comes before the second."""
    EngineProbe(engine).one_at_a_time()
    order, waits = [], threading.Event()

    def other():
        for step in engine.answer([Row("base", QUESTION)], SAMPLING):
            waits.set()
            if step.done:
                order.append("other")

    visitor = threading.Thread(target=other)

    def watched(requested, sampling, reading):
        for item in engine.answer(requested, sampling, reading=reading):
            if not order and not visitor.ident:
                visitor.start()
                assert waits.wait(30)
            yield item

    for result in ask_all(read_lines("Lima\nPeru", "here"), askers(engine), "", watched, SAMPLING):
        order.append(result.number)
        if result.number == 1:
            visitor.join(30)
    # The other may be told that it is done before the first result is read here.
    assert sorted(order[:2], key=str) == [1, "other"] and order[2:] == [2]


def test_who_ends_it_frees_the_model(engine):
    coming = ask_all(read_lines("Lima\nPeru", "here"), askers(engine), "", engine.answer, SAMPLING)
    next(coming)
    coming.close()
    assert last(engine, rows(QUESTION), SAMPLING).done
