# SPDX-License-Identifier: Apache-2.0
"""Speed of a comparison: base, LoRA and SLIM in one batch, against the base alone and three runs one after another."""

from __future__ import annotations

import time
from collections.abc import Sequence

from ...inference import Engine, Message, Row, Sampling
from .turns import Measured, Measures, Way, summary, take_turns


BASE, RUNS = "base alone", "one after another"


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
    """Let rows answer.

    Returns:
        Seconds until all rows have a first token, for each further token of all of them, and in all.

    Raises:
        ValueError: if an answer did not get its tokens.
    """
    start, first = time.perf_counter(), 0.0
    for step in engine.answer(rows, Sampling(max_new_tokens=tokens), batched=batched):
        if not first and all(row.tokens for row in step.rows):
            first = time.perf_counter() - start
    seconds = time.perf_counter() - start
    if any(row.tokens != tokens for row in step.rows):
        raise ValueError(f"The answers did not get {tokens} tokens: {[row.error for row in step.rows]}.")
    return {"first token": first, "token": (seconds - first) / (tokens - 1), "answer": seconds}


def time_ways(engine: Engine, prompt: str, tokens: int, rounds: int) -> list[Measured]:
    """Time all ways in turn. Each answer has exactly `tokens` tokens; the measure is one token of every answer.

    Args:
        engine: with at least one adapter.
        prompt: the question.
        tokens: length of each answer.
        rounds: how often each way has its turn.
    """
    names = [variant.name for variant in engine.variants]

    def way(wanted: list[str], routing: bool = False, batched: bool = True) -> Way:
        rows = [Row(name, (Message("user", prompt),), routing) for name in wanted]

        return lambda: {"token": answer(engine, rows, tokens, batched)["answer"] / tokens}

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
