# SPDX-License-Identifier: Apache-2.0
"""Several replicas behind one address: what happens to a request whose replica ends. Without Ray."""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field

import httpx
import openai
import pytest

from slim_core.serving import replicas
from slim_core.serving.asgi import respond
from slim_core.serving.openai_api import standalone_api
from slim_core.serving.protocol import EngineService
from slim_core.serving.replicas import Call, ReplicaLostError, ResponseStart, replicated_api
from tests.serving.conftest import KEY
from tests.serving.test_openai_api import HELLO, ask
from tests.ui.scripted import FAIL, ScriptedEngine
from tests.waiting import until


@dataclass
class Fleet:
    """Gives each call to the next of its replicas, which ends after so many pieces if a number of them is given.

    Attributes:
        ends: for each of the next calls, how many pieces come before its replica ends; None for all.
        calls: which came.
        left: how many were closed.
    """

    engine: ScriptedEngine
    ends: list[int | None] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    left: int = 0

    def __post_init__(self) -> None:
        self._app = standalone_api(EngineService(self.engine, 8, 64))

    async def send(self, call: Call) -> AsyncGenerator[ResponseStart | bytes, None]:
        self.calls.append(call)
        pieces = self.ends.pop(0) if self.ends else None
        try:
            if pieces == 0:
                raise ReplicaLostError
            async with aclosing(respond(self._app, call)) as response:
                async for piece in response:
                    yield piece
                    if pieces is not None and (pieces := pieces - 1) == 0:
                        raise ReplicaLostError
        finally:
            self.left += 1


@pytest.fixture
def fleet(engine, monkeypatch) -> Fleet:
    monkeypatch.setattr(replicas, "PAUSE", 0.01)
    return Fleet(engine)


@pytest.fixture
def server(fleet, serve_app):
    return serve_app(replicated_api(fleet.send, 8))


def test_it_answers_as_a_replica_alone(fleet, server, serve):
    plain, client = serve(fleet.engine).client(), server.client()
    assert [model.id for model in client.models.list()] == ["base", "lora", "slim"]
    assert client.models.retrieve("lora") == plain.models.retrieve("lora")
    assert ask(client, seed=5).choices == ask(plain, seed=5).choices
    pieces = list(ask(client, seed=5, stream=True))
    assert (
        "".join(piece.choices[0].delta.content or "" for piece in pieces)
        == ask(plain, seed=5).choices[0].message.content
    )
    assert len(pieces) > 3 and len({piece.id for piece in pieces}) == 1
    completion = client.completions.create(model="base", prompt=["One", "two"], max_tokens=4, temperature=0, seed=5)
    assert [choice.text for choice in completion.choices] == [
        choice.text
        for choice in plain.completions.create(
            model="base", prompt=["One", "two"], max_tokens=4, temperature=0, seed=5
        ).choices
    ]
    assert [call.model for call in fleet.calls] == [None, None, "slim", "slim", "base"]


@pytest.mark.parametrize("path", ["/chat/completions", "/embeddings?x=1", "/models/gpt%2F4"])
@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"model": 3}', b'{"model": "gpt-4o", "messages": []}'])
def test_it_refuses_as_a_replica_alone(fleet, server, serve, path, body):
    plain = serve(fleet.engine)
    for method in ("GET", "POST"):
        actual, expected = (httpx.request(method, each.url + path, content=body) for each in (server, plain))
        assert (actual.status_code, actual.json()) == (expected.status_code, expected.json())


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("ends", [[0], [1], [0, 1]])
def test_a_request_that_had_not_begun_is_answered_by_another(fleet, server, ends, stream):
    fleet.ends = list(ends)
    reply = ask(server.client(), seed=5, stream=stream)
    text = "".join(p.choices[0].delta.content or "" for p in reply) if stream else reply.choices[0].message.content
    assert text.startswith("SLIM says: turn1 seed5 Hello there") and len(text.split()) == fleet.engine.length
    assert len(fleet.calls) == len(ends) + 1


def test_an_answer_that_is_not_streamed_begins_when_it_is_complete(fleet, server):
    # Its status had come, but the client had nothing of it.
    fleet.ends = [2]
    assert ask(server.client()).choices[0].finish_reason == "stop"
    assert len(fleet.calls) == 2


def test_a_stream_that_had_begun_says_that_it_is_not_whole(fleet, server):
    fleet.ends = [4]
    pieces = []
    with pytest.raises(
        openai.APIError, match=r"The replica that was writing this answer has ended, .*: send the request"
    ):
        for piece in ask(server.client(), stream=True):
            pieces.append(piece.choices[0].delta.content or "")
    assert "".join(pieces).startswith("SLIM") and len(fleet.calls) == 1
    fleet.ends = [4]
    body = {"model": "slim", "messages": HELLO, "stream": True}
    assert httpx.post(f"{server.url}/chat/completions", json=body).text.endswith("data: [DONE]\n\n")


def test_a_request_that_ends_every_replica_is_given_up(fleet, server):
    fleet.ends = [0, 1, 0, 0]
    with pytest.raises(
        openai.InternalServerError, match="3 replicas ended while they answered this request"
    ) as caught:
        ask(server.client())
    assert caught.value.status_code == 503 and len(fleet.calls) == 3 and len(fleet.ends) == 1


def test_what_a_model_refuses_is_asked_once(fleet, server):
    for stream in (False, True):
        with pytest.raises(openai.InternalServerError, match="The memory is used up"):
            ask(server.client(), [{"role": "user", "content": FAIL}], stream=stream)
    assert len(fleet.calls) == 2


def test_a_key_is_asked_for_before_any_replica(fleet, serve_app):
    server = serve_app(replicated_api(fleet.send, 8, KEY))
    with pytest.raises(openai.AuthenticationError, match="The API key is missing or wrong"):
        ask(server.client("another"))
    assert not fleet.calls and ask(server.client()).choices
    assert "authorization" not in fleet.calls[0].headers
    assert httpx.get(server.url.removesuffix("/v1") + "/health").json() == {"status": "ok"}


def test_places_are_limited_and_given_back(fleet, serve_app):
    fleet.engine.delay = dict.fromkeys(("base", "lora", "slim"), 0.2)
    client = serve_app(replicated_api(fleet.send, 1)).client()
    stream = ask(client, stream=True)
    next(stream)
    with pytest.raises(openai.RateLimitError, match="All places are taken by requests that are running or queued"):
        ask(client)
    stream.close()
    # A client that leaves frees the replica too.
    until(lambda: fleet.left == 1 and fleet.engine.closed == fleet.engine.runs == 1)
    fleet.engine.delay, fleet.ends = {}, [0, 4]
    with pytest.raises(openai.APIError, match="has ended"):
        list(ask(client, stream=True))
    assert ask(client).choices


def test_many_requests_lose_nothing_while_replicas_end(fleet, server, monkeypatch):
    fleet.ends = [None, 0, None, 1, 0, None, 2, 0]
    # Nothing says which requests meet them: one may meet all five.
    monkeypatch.setattr(replicas, "TRIES", 6)
    answers: list[str] = []

    def run() -> None:
        answers.append(ask(server.client(), seed=5).choices[0].message.content)

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 8 and len(set(answers)) == 1 and len(fleet.calls) == 8 + 5
