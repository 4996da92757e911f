# SPDX-License-Identifier: Apache-2.0
"""Speed of a comparison: base, LoRA and SLIM in one batch, against the base alone and three runs one after another."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from itertools import count

from ...inference import Engine, Message, Row, Sampling
from .turns import Measured, Measures, Way, summary, take_turns


BASE, RUNS = "base alone", "one after another"
READ_ANEW, ALL_ANEW = "base alone, read anew", "all in one batch, read anew"
# Bytes for kept rows: more than any conversation here needs.
KEPT = 2**33
# Random turns use the first tokens, which every vocabulary has.
SOME_TOKENS = 200


def experts_used(engine: Engine, prompt: str, tokens: int) -> dict[str, float]:
    """Average number of LoRA experts per token and Linear, by adapter. On a CPU only these cost time.

    Args:
        engine: with at least one adapter.
        prompt: the question.
        tokens: length of each answer.
    """
    names = [variant.name for variant in engine.variants[1:]]
    rows = [Row(name, (Message("user", prompt),), routing=True) for name in names]
    *_, step = engine.answer(rows, Sampling(max_new_tokens=tokens))
    return {
        names[index]: (routing.weights[..., : routing.num_experts] > 0).sum(-1).float().mean().item()
        for index, routing in step.routing.items()
    }


def answer(engine: Engine, rows: Sequence[Row], tokens: int, batched: bool = True) -> Measures:
    """Answer with some rows.

    Returns:
        Seconds until all rows have a first token, for each further token of all of them, and in all.

    Raises:
        ValueError: if an answer did not get its tokens.
    """
    start = time.perf_counter()
    first, _ = timed(engine, rows, tokens, batched)
    seconds = time.perf_counter() - start
    return {"first token": first, "token": (seconds - first) / (tokens - 1), "answer": seconds}


def timed(
    engine: Engine, rows: Sequence[Row], tokens: int, batched: bool = True
) -> tuple[float, list[tuple[int, ...]]]:
    """Seconds until all rows have a first token, and the tokens of their answers.

    Raises:
        ValueError: if an answer did not get its tokens.
    """
    start, first = time.perf_counter(), 0.0
    for step in engine.answer(rows, Sampling(max_new_tokens=tokens), batched=batched):
        if not first and all(row.tokens for row in step.rows):
            first = time.perf_counter() - start
    if any(row.tokens != tokens for row in step.rows):
        raise ValueError(f"The answers did not get {tokens} tokens: {[row.error for row in step.rows]}.")
    return first, [row.token_ids for row in step.rows]


def time_third_turn(engine: Engine, words: int, tokens: int, rounds: int) -> list[Measured]:
    """Time the first token of the third turn of a conversation, read anew or from where its second turn ended.

    Args:
        engine: with at least one adapter.
        words: how many tokens a turn adds.
        tokens: length of each answer.
        rounds: how often each way is timed.
    """
    names = [variant.name for variant in engine.variants]
    numbers, previous_limit = count(), engine.kept_at_most

    def way(variants: list[str], kept: bool) -> Way:
        def talk() -> Measures:
            # Different words each time, so that a turn can continue only its own conversation.
            dice = random.Random(next(numbers))
            engine.keep_at_most(KEPT if kept else 0)
            so_far: list[tuple[int, ...]] = [() for _ in variants]
            for _ in range(3):
                turn = tuple(dice.randrange(10, SOME_TOKENS) for _ in range(words))
                so_far = [text + turn for text in so_far]
                rows = [Row(name, (), text=text) for name, text in zip(variants, so_far, strict=True)]
                first, written = timed(engine, rows, tokens)
                so_far = [text + ids for text, ids in zip(so_far, written, strict=True)]
            return {"first token": first}

        return talk

    ways = {READ_ANEW: way(names[:1], False), "base alone, kept": way(names[:1], True)}
    ways |= {ALL_ANEW: way(names, False), "all in one batch, kept": way(names, True)}
    ends, engine.end_tokens = engine.end_tokens, frozenset()
    try:
        return summary(take_turns(ways, rounds), (READ_ANEW, ALL_ANEW))
    finally:
        engine.end_tokens = ends
        engine.keep_at_most(previous_limit)


def time_ways(engine: Engine, prompt: str, tokens: int, rounds: int) -> list[Measured]:
    """Time all ways in turn: whole answers, which have exactly `tokens` tokens, and the time for each token after the
    first. Answers that are written one after another have no such token of all of them.

    Args:
        engine: with at least one adapter.
        prompt: the question.
        tokens: length of each answer.
        rounds: how often each way is timed.
    """
    names = [variant.name for variant in engine.variants]

    def way(variants: list[str], routing: bool = False, batched: bool = True) -> Way:
        rows = [Row(name, (Message("user", prompt),), routing) for name in variants]

        measures = ("token", "answer") if batched else ("answer",)

        def write() -> Measures:
            measured = answer(engine, rows, tokens, batched)
            return {measure: measured[measure] for measure in measures}

        return write

    ways = {BASE: way(names[:1])}
    ways |= {f"{name} alone": way([name]) for name in names[1:]}
    ways |= {
        "the base in every row": way(names[:1] * len(names)),
        "all in one batch": way(names),
        "all in one batch, routing recorded": way(names, routing=True),
        RUNS: way(names, batched=False),
    }
    ends, engine.end_tokens = engine.end_tokens, frozenset()
    try:
        return summary(take_turns(ways, rounds), (BASE, RUNS))
    finally:
        engine.end_tokens = ends
