# SPDX-License-Identifier: Apache-2.0
"""Clients are told apart by their addresses: they take turns, and one cannot pass for another."""

from __future__ import annotations

import threading

import httpx
import openai
import pytest

from slim_core.inference import Message, Row, Sampling, load_engine
from slim_core.inference.batch import Batch
from slim_core.paths import DEMO
from slim_core.serving.gate import Gate
from slim_core.serving.gate_proxy import gate_proxy
from slim_core.serving.openai_api import standalone_api
from slim_core.serving.replicas import replicated_api
from slim_core.webui.backend import Backend
from slim_core.webui.http.programs import Programs
from tests.inference.probe import EngineProbe
from tests.serving.conftest import Server
from tests.serving.test_openai_api import ask
from tests.serving.test_replicas import Fleet
from tests.waiting import PATIENCE, until


def client(server: Server, address: str = "127.0.0.1", said: str | None = None) -> openai.OpenAI:
    """A client at an address of this machine, which says in a header that it asks for another."""
    http = httpx.Client(
        transport=httpx.HTTPTransport(local_address=address),
        headers={} if said is None else {"X-Forwarded-For": said},
        timeout=30 * PATIENCE,
    )
    return openai.OpenAI(base_url=server.url, api_key="any", max_retries=0, http_client=http)


@pytest.fixture(scope="module")
def demo():
    return load_engine(DEMO / "base", lora=DEMO / "lora", slim=DEMO / "slim")


@pytest.fixture(params=["alone", "replicas", "gate"])
def front(request, engine, serve, serve_app, demo):
    """A server whose engine notes who asked, alone or behind something."""
    if request.param == "replicas":
        return serve_app(replicated_api(Fleet(engine).send, 4))
    server = serve(engine)
    if request.param == "alone":
        return server
    return serve_app(gate_proxy(Gate(demo, "slim", 0.5, "base", "lora"), "slim", server.url, 4))


@pytest.mark.parametrize(
    ("address", "said", "visitor"),
    [
        ("127.0.0.9", None, "127.0.0.9"),
        # Only a proxy on this machine is believed, and of what it says only what it saw itself.
        ("127.0.0.1", "203.0.113.5", "203.0.113.5"),
        ("127.0.0.1", "198.51.100.1, 203.0.113.5", "203.0.113.5"),
        ("127.0.0.9", "203.0.113.5", "127.0.0.9"),
    ],
)
def test_a_visitor_is_who_a_trusted_proxy_says(front, engine, address, said, visitor):
    assert ask(client(front, address, said)).choices
    assert engine.visitors == [visitor]


def test_other_proxies_are_trusted_by_name(engine, serve, monkeypatch):
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "127.0.0.8/29")
    server = serve(engine)
    for address in ("127.0.0.9", "127.0.0.1"):
        ask(client(server, address, "203.0.113.5"))
    assert engine.visitors == ["203.0.113.5", "127.0.0.1"]


@pytest.mark.parametrize("replicated", [False, True])
def test_who_takes_all_places_keeps_no_other_address_away(engine, serve, serve_app, replicated):
    engine.delay = dict.fromkeys(("base", "lora", "slim"), 0.2)
    server = serve_app(replicated_api(Fleet(engine).send, 4)) if replicated else serve(engine, places=4)
    threads = [threading.Thread(target=ask, args=(client(server, "127.0.0.2"),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    until(lambda: engine.visitors == ["127.0.0.2"] * 4)
    for forged in (None, "203.0.113.5"):
        with pytest.raises(openai.RateLimitError):
            ask(client(server, "127.0.0.2", forged))
    assert ask(client(server, "127.0.0.3")).choices
    for thread in threads:
        thread.join()


def test_an_address_with_many_prompts_does_not_hold_back_anothers_first(demo, serve):
    """Over HTTP, where no two share a batch: in turns, although one address came first with all of its prompts."""
    rows_before = EngineProbe(demo).most_rows_now
    EngineProbe(demo).one_at_a_time()
    holder = demo.answer([Row("base", (Message("user", "Hello there"),))], Sampling(max_new_tokens=200))
    next(holder)
    server, order, threads = serve(demo, places=32), [], []

    def run(address: str) -> None:
        ask(client(server, address), model="base", max_tokens=2)
        order.append(address)

    for address in ["127.0.0.2"] * 5 + ["127.0.0.3"] * 2:
        threads.append(threading.Thread(target=run, args=(address,)))
        threads[-1].start()
        until(lambda: EngineProbe(demo).in_line == len(threads) + 1)
    holder.close()
    for thread in threads:
        thread.join()
    EngineProbe(demo).most_rows(rows_before)
    # Threads that end at almost the same time may be noted in another order.
    assert "127.0.0.3" in order[:3] and order.index("127.0.0.3", order.index("127.0.0.3") + 1) < 6
    assert order[-1] == "127.0.0.2"


@pytest.mark.parametrize("beside_the_page", [False, True])
@pytest.mark.parametrize("model", ["base", "lora", "slim"])
def test_the_next_turn_of_a_conversation_is_read_from_where_the_last_one_ended(
    demo, serve, serve_app, monkeypatch, beside_the_page, model
):
    reads, original = [], Batch.__init__

    def begin(self, *given):
        original(self, *given)
        reads.append((len(self.answers[0].prompt), self.unread))

    monkeypatch.setattr(Batch, "__init__", begin)
    server = serve_app(standalone_api(Programs(Backend(demo), 64))) if beside_the_page else serve(demo)
    words = ["Name the largest bird of all that live in the whole world.", "And what is 7 + 8?", "What is 5 + 6?"]

    def talk() -> list[str]:
        messages = []
        for each in words:
            messages.append({"role": "user", "content": each})
            answer = ask(client(server), messages, model).choices[0].message
            messages.append(answer)
        return [message.content for message in messages[1::2]]

    alone = talk()
    assert all(whole == unread for whole, unread in reads) and len(reads) == len(words)
    demo.keep_at_most(10**8)
    reads.clear()
    assert talk() == alone
    demo.keep_at_most(0)
    assert reads[0][0] == reads[0][1]
    assert all(unread < whole / 2 for whole, unread in reads[1:]), reads
