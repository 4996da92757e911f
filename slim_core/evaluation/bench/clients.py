# SPDX-License-Identifier: Apache-2.0
"""Several clients at once: how many answers they get in a second, how long each waits, and what is lost."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import count
from typing import Any

import httpx

from ...inference import Engine, Message, Row, Sampling


# Asks one question, by its number and variant; returns whether it was answered or refused with a sentence.
Ask = Callable[[int, str], bool]
# A connection is slow, a model slower.
PATIENCE_SECONDS = 300.0


@dataclass(frozen=True)
class Served:
    """What so many clients got.

    Attributes:
        clients: how many asked at once, each one question after another.
        answers: how many were answered.
        refused: refused with a sentence.
        lost: neither.
        answers_per_second: over all clients.
        p50, p99: seconds from a question to the end of its answer; None without answers.
        spread: the least and the most answers per second of a round.
    """

    clients: int
    answers: int
    refused: int
    lost: int
    answers_per_second: float
    p50: float | None
    p99: float | None
    spread: tuple[float, float]

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


@dataclass(frozen=True)
class _Round:
    seconds: float
    waits: list[float]
    refused: int
    lost: int


def serve_clients(ask: Ask, variants: list[str], levels: list[int], questions: int, rounds: int) -> list[Served]:
    """Let so many clients ask at once; the levels take turns.

    Args:
        ask: one question; raises what it likes.
        variants: that are asked in turn.
        levels: numbers of clients.
        questions: of a round, over all clients; at least one each.
        rounds: that are measured, after one for warming up.
    """
    by_level: dict[int, list[_Round]] = {level: [] for level in levels}
    for number in range(rounds + 1):
        for level in levels:
            measured = _round(ask, variants, level, max(level, questions))
            if number:
                by_level[level].append(measured)
    return [_served(level, level_rounds) for level, level_rounds in by_level.items()]


def _round(ask: Ask, variants: list[str], clients: int, questions: int) -> _Round:
    numbers, lock = count(), threading.Lock()
    waits: list[float] = []
    refused = lost = 0

    def client() -> None:
        nonlocal refused, lost
        while True:
            with lock:
                number = next(numbers)
            if number >= questions:
                return
            start, answered = time.perf_counter(), None
            try:
                answered = ask(number, variants[number % len(variants)])
            except Exception:  # whatever it was, the answer is lost
                answered = None
            with lock:
                if answered:
                    waits.append(time.perf_counter() - start)
                refused, lost = refused + (answered is False), lost + (answered is None)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return _Round(time.perf_counter() - start, waits, refused, lost)


def _served(clients: int, rounds: list[_Round]) -> Served:
    waits = sorted(wait for client_round in rounds for wait in client_round.waits)
    rates = [len(client_round.waits) / client_round.seconds for client_round in rounds]
    return Served(
        clients,
        len(waits),
        sum(one.refused for one in rounds),
        sum(one.lost for one in rounds),
        statistics.median(rates),
        waits[len(waits) // 2] if waits else None,
        waits[min(len(waits) - 1, int(0.99 * len(waits)))] if waits else None,
        (min(rates), max(rates)),
    )


def ask_engine(engine: Engine, tokens: int) -> Ask:
    """Asks an engine in this process."""

    def ask(number: int, variant: str) -> bool:
        row = Row(variant, (Message("user", f"What is {number} + 8?"),))
        *_, step = engine.answer([row], Sampling(max_new_tokens=tokens))
        return step.rows[0].error is None

    return ask


def ask_server(url: str, key: str, tokens: int) -> Ask:
    """Asks a server that speaks OpenAI's protocol.

    Args:
        url: that ends with /v1.
        key: that it wants; any text where it wants none.
        tokens: of an answer, at most.
    """
    client = httpx.Client(
        timeout=PATIENCE_SECONDS,
        headers={"Authorization": f"Bearer {key}"},
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
    )

    def ask(number: int, variant: str) -> bool:
        messages = [{"role": "user", "content": f"What is {number} + 8?"}]
        body = {"model": variant, "messages": messages, "max_tokens": tokens, "temperature": 0}
        response = client.post(f"{url.rstrip('/')}/chat/completions", json=body)
        if response.status_code == httpx.codes.TOO_MANY_REQUESTS:
            return False
        response.raise_for_status()
        return bool(response.json()["choices"])

    return ask


def variants_of(url: str, key: str) -> list[str]:
    """The models of a server. Raises OSError with a sentence if it does not say."""
    try:
        response = httpx.get(f"{url.rstrip('/')}/models", headers={"Authorization": f"Bearer {key}"})
        response.raise_for_status()
        return [str(model["id"]) for model in response.json()["data"]]
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        raise OSError(f"No server that speaks OpenAI's protocol answers at {url} ({type(error).__name__}).") from None
