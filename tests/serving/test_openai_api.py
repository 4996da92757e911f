# SPDX-License-Identifier: Apache-2.0
"""OpenAI's client gets from this server what it gets from OpenAI's: answers, streams, and errors of its own kinds."""

from __future__ import annotations

import json
import threading
from dataclasses import replace

import anyio
import httpx
import openai
import pytest
from fastapi import Request

from slim_core.inference import Message, Row, Sampling
from slim_core.serving.errors import ApiError
from slim_core.serving.http import Bounded, read_json
from slim_core.serving.openai_api import standalone_api
from slim_core.serving.protocol import EngineService
from tests.event_loop import in_new_thread
from tests.serving.conftest import KEY
from tests.ui.scripted import FAIL
from tests.waiting import until


HELLO = [{"role": "user", "content": "Hello there"}]


def ask(client, messages=HELLO, model="slim", **options):
    return client.chat.completions.create(model=model, messages=messages, **({"temperature": 0} | options))


def test_the_models_are_the_variants(serve, engine):
    client = serve(engine).client()
    assert [model.id for model in client.models.list()] == ["base", "lora", "slim"]
    assert client.models.retrieve("lora").id == "lora"
    with pytest.raises(openai.NotFoundError, match="There is no model 'gpt-4o' here; there are base, lora, slim"):
        client.models.retrieve("gpt-4o")


def test_an_answer_and_what_it_took(serve, engine):
    answer = ask(serve(engine).client(), seed=5)
    assert answer.object == "chat.completion" and answer.model == "slim" and answer.id.startswith("chatcmpl-")
    (choice,) = answer.choices
    assert choice.message.role == "assistant" and choice.finish_reason == "stop"
    assert choice.message.content.startswith("SLIM says: turn1 seed5 Hello there")
    assert answer.usage.completion_tokens == engine.length
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + engine.length


def test_a_stream_says_the_same_in_pieces(serve, engine):
    client = serve(engine).client()
    whole = ask(client, seed=5)
    pieces = list(ask(client, seed=5, stream=True, stream_options={"include_usage": True}))
    deltas = [piece.choices[0].delta for piece in pieces if piece.choices]
    assert deltas[0].role == "assistant"
    assert len([delta for delta in deltas if delta.content]) > 3
    assert "".join(delta.content or "" for delta in deltas) == whole.choices[0].message.content
    assert [p.choices[0].finish_reason for p in pieces if p.choices and p.choices[0].finish_reason] == ["stop"]
    assert pieces[-1].usage == whole.usage and all(piece.usage is None for piece in pieces[:-1])
    assert {piece.object for piece in pieces} == {"chat.completion.chunk"} and len({p.id for p in pieces}) == 1


def test_several_choices_have_seeds_of_their_own(serve, engine):
    client = serve(engine).client()
    completion = ask(client, n=3, seed=7)
    assert [choice.index for choice in completion.choices] == [0, 1, 2]
    assert [choice.message.content.split()[3] for choice in completion.choices] == ["seed7", "seed8", "seed9"]
    assert completion.usage.completion_tokens == 3 * engine.length
    texts = {0: "", 1: ""}
    for piece in ask(client, n=2, seed=7, stream=True):
        texts[piece.choices[0].index] += piece.choices[0].delta.content or ""
    assert [text.split()[3] for text in texts.values()] == ["seed7", "seed8"]


def test_the_shapes_that_clients_send(serve, engine):
    messages = [
        {"role": "developer", "content": "Be short."},
        {"role": "user", "content": [{"type": "text", "text": "One "}, {"type": "text", "text": "two"}]},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "Three"},
    ]
    client = serve(engine).client()
    # What changes nothing is taken, as some clients send all of it.
    idle = {"user": "me", "tools": [], "logit_bias": {}, "presence_penalty": 0, "response_format": {"type": "text"}}
    completion = ask(client, messages, "base", extra_body=idle, max_completion_tokens=9, stop=["never"])
    assert completion.choices[0].message.content.startswith("Base says: turn2")
    assert completion.usage.completion_tokens == 9


def test_an_answer_can_be_sent_back_as_it_came(serve, engine):
    client = serve(engine).client()
    message = ask(client, seed=5).choices[0].message
    for sent in (message, message.model_dump(), message.model_dump() | {"annotations": []}):
        assert ask(client, [*HELLO, sent, *HELLO]).choices[0].message.content.startswith("SLIM says: turn2")
    # Null says as little as leaving a field out.
    nothing = dict.fromkeys(("n", "stop", "stream_options", "tools", "verbosity", "unheard_of"))
    assert ask(client, seed=5, extra_body=nothing).choices[0].message == message


@pytest.mark.parametrize(
    ("fields", "status", "param", "sentence"),
    [
        ({"model": "gpt-4o"}, 404, "model", "There is no model 'gpt-4o' here; there are base, lora, slim."),
        ({"model": 3}, 400, "model", "model must be a text, not 3."),
        ({"temperature": 3}, 400, "temperature", "temperature must be at most 2, not 3."),
        ({"top_p": 0}, 400, "top_p", "top_p must be more than 0, not 0."),
        ({"n": 100}, 400, "n", "n must be at most 8, not 100."),
        ({"max_tokens": 1000}, 400, "max_tokens", "An answer here has at most 64 tokens; 1000 were asked for."),
        ({"stop": [""]}, 400, "stop[0]", "stop[0] must be a text that is not empty, not ''."),
        ({"tools": [{"type": "function"}]}, 400, "tools", "This server does not support tools; leave it out."),
        ({"logit_bias": {"5": 100}}, 400, "logit_bias", "This server does not support logit_bias; leave it out."),
        ({"temprature": 0}, 400, "temprature", "temprature is not a field that this server knows."),
        ({"messages": []}, 400, "messages", "messages must be a list that is not empty, not []."),
        ({"messages": None}, 400, "messages", "messages is missing."),
        (
            {"messages": [{"role": "user"}]},
            400,
            "messages[0].content",
            "messages[0].content is missing.",
        ),
        (
            {"messages": [{"role": "tool", "content": "x"}]},
            400,
            "messages[0].role",
            "messages[0].role must be 'developer', 'system', 'user' or 'assistant', not 'tool'.",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            400,
            "messages[0].content[0].type",
            "messages[0].content[0].type must be 'text', not 'image_url'.",
        ),
        ({"n": True}, 400, "n", "n must be a whole number, not True."),
        ({"temperature": "0.5"}, 400, "temperature", "temperature must be a number, not '0.5'."),
        ({"temperature": float("nan")}, 400, "temperature", "temperature must be at most 2, not nan."),
        ({"seed": 1.5}, 400, "seed", "seed must be a whole number, not 1.5."),
        ({"stream": "false"}, 400, "stream", "stream must be true or false, not 'false'."),
        ({"stop": 5}, 400, "stop", "stop must be a text or a list of texts, not 5."),
        ({"stop": ["a"] * 17}, 400, "stop", "stop must be a list of at most 16 items, not ['a',"),
        ({"logprobs": 3}, 400, "logprobs", "logprobs must be true or false, not 3."),
        ({"top_logprobs": 21}, 400, "top_logprobs", "top_logprobs must be at most 20, not 21."),
        ({"top_logprobs": 3}, 400, "top_logprobs", "top_logprobs has no effect without logprobs: set logprobs to"),
        ({"max_tokens": 10**30}, 400, "max_tokens", "An answer here has at most 64 tokens; 1000000"),
        (
            {"max_completion_tokens": 1000},
            400,
            "max_completion_tokens",
            "An answer here has at most 64 tokens; 1000 were asked for.",
        ),
        (
            {"max_tokens": 5, "max_completion_tokens": 6},
            400,
            "max_tokens",
            "max_tokens and max_completion_tokens mean the same: leave one of them out.",
        ),
        (
            {"response_format": {"type": "json_object"}},
            400,
            "response_format",
            "This server does not support response_format; leave it out.",
        ),
        ({"tool_choice": "required"}, 400, "tool_choice", "This server does not support tool_choice; leave it out."),
        ({"verbosity": "low"}, 400, "verbosity", "This server does not support verbosity; leave it out."),
        (
            {"stream_options": {"include_obfuscation": True}},
            400,
            "stream_options.include_obfuscation",
            "stream_options.include_obfuscation is not a field that this server knows.",
        ),
        ({"messages": ["Hello"]}, 400, "messages[0]", "messages[0] must be a JSON object, not 'Hello'."),
        (
            {"messages": [{"role": "user", "content": 5}]},
            400,
            "messages[0].content",
            "messages[0].content must be a text or a list of its parts, not 5.",
        ),
        ({"messages": [{"role": "user", "content": None}]}, 400, "messages[0].content", "messages[0].content must be"),
        (
            {"model": "lora", "slim_strength": 0},
            400,
            "slim_strength",
            "lora has no gate, so slim_strength has no effect.",
        ),
        (
            {"model": "lora", "slim_quantile": 0.9},
            400,
            "slim_quantile",
            "lora has no gate, so slim_quantile has no effect.",
        ),
        ({"slim_quantile": 1}, 400, "slim_quantile", "slim_quantile must be"),
        (
            {"slim_quantile": 0.3},
            400,
            "slim_quantile",
            "The quantile is 0.3; it must be from 0.5 to 0.99, which slim stores.",
        ),
    ],
)
def test_what_cannot_be_answered_is_a_sentence(serve, engine, fields, status, param, sentence):
    body = {"model": "slim", "messages": HELLO} | fields
    response = httpx.post(f"{serve(engine).url}/chat/completions", content=json.dumps(body))
    error = response.json()["error"]
    assert response.status_code == status
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert error["message"].startswith(sentence) and error["message"].count(". ") == 0


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"{", "The body of the request is not JSON in UTF-8."),
        (b'{"model": "\xff"}', "The body of the request is not JSON in UTF-8."),
        (b"[" * 100_000, "The body of the request is not JSON in UTF-8."),
        (b"[]", "The request must be a JSON object, not []."),
        (rb'{"model": "\ud83d"}', r"The request contains half a character: an escape such as \ud83d alone."),
        (b'"' + b"x" * 5_000_000 + b'"', "The request is larger than 4.0 MB, the largest that is accepted."),
    ],
)
def test_a_body_that_is_no_request(serve, engine, body, sentence):
    response = httpx.post(f"{serve(engine).url}/chat/completions", content=body)
    assert response.json()["error"]["message"].startswith(sentence)
    assert response.status_code == (413 if len(body) > 4_000_000 else 400)


def test_a_body_whose_sender_leaves_is_no_failure():
    messages = iter([{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}])

    async def receive():
        return next(messages)

    with pytest.raises(ApiError, match="The request ended before its body did"):
        in_new_thread(anyio.run, read_json, Request({"type": "http"}, receive))


def test_addresses_that_are_not_there(serve, engine):
    url = serve(engine).url
    for method, path in (("GET", "/embeddings"), ("GET", "/chat/completions"), ("DELETE", "/models")):
        response = httpx.request(method, url + path)
        assert response.status_code in (404, 405)
        assert "is not part of this API" in response.json()["error"]["message"]


def test_a_key_is_asked_for(serve, engine):
    server = serve(engine, key=KEY)
    assert ask(server.client()).choices
    with pytest.raises(openai.AuthenticationError, match="The API key is missing or wrong"):
        ask(server.client("another"))
    assert httpx.get(f"{server.url}/models").status_code == 401


def test_when_all_places_are_taken(serve, engine):
    engine.delay = dict.fromkeys(("base", "lora", "slim"), 0.2)
    client = serve(engine, places=1).client()
    stream = ask(client, stream=True)
    next(stream)
    with pytest.raises(openai.RateLimitError, match="1 requests are running or queued") as caught:
        ask(client)
    assert caught.value.response.headers["retry-after"] == "2"
    stream.close()
    # The place is free again, and so is the model.
    until(lambda: engine.closed == engine.runs)
    engine.delay = {}
    assert ask(client).choices


def test_a_client_that_leaves_frees_the_model(serve, engine):
    engine.delay, engine.length = {"slim": 0.05}, 200
    server = serve(engine, max_new_tokens=1000)
    with pytest.raises(openai.APITimeoutError):
        ask(server.client().with_options(timeout=0.5))
    until(lambda: engine.closed == engine.runs == 1)


def test_a_model_that_fails(serve, engine):
    client = serve(engine).client()
    with pytest.raises(openai.InternalServerError, match="The memory is used up"):
        ask(client, [{"role": "user", "content": FAIL}])
    # Its stream fails before it begins, so its status says so too.
    with pytest.raises(openai.InternalServerError, match="The memory is used up"):
        ask(client, [{"role": "user", "content": FAIL}], stream=True)


def test_requests_beyond_a_limit_are_refused_in_a_sentence(engine, serve_app):
    engine.delay = {"slim": 0.2}
    server = serve_app(Bounded(standalone_api(EngineService(engine, 4, 64)), 1))
    stream = ask(server.client(), stream=True)
    next(stream)
    with pytest.raises(openai.InternalServerError, match="1 requests are being answered, and no more") as caught:
        server.client().models.list()
    assert caught.value.status_code == 503 and caught.value.response.headers["retry-after"] == "2"
    stream.close()
    until(lambda: httpx.get(f"{server.url}/models").status_code == 200)


def test_what_nobody_expected_is_an_error_of_openai_s_form_too(serve, engine, monkeypatch):
    def broken(prompt):
        raise RuntimeError("what nobody expected")

    monkeypatch.setattr(engine, "count_tokens", broken)
    with pytest.raises(openai.InternalServerError, match="The server failed while it answered") as caught:
        ask(serve(engine).client())
    assert caught.value.type == "server_error" and "nobody" not in caught.value.message


def test_a_conversation_that_is_too_long(serve, engine):
    engine.info = replace(engine.info, context_length=20)
    with pytest.raises(openai.BadRequestError, match="reads and writes at most 20: shorten it") as caught:
        ask(serve(engine).client(), [{"role": "user", "content": "word " * 100}])
    assert caught.value.code == "context_length_exceeded"


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": ""}],
        [{"role": "user", "content": []}],
        [{"role": "system", "content": "Be short."}],
        [{"role": "assistant", "content": "Hi"}],
        [*HELLO, {"role": "assistant", "content": "Hi"}, {"role": "assistant", "content": "there"}],
    ],
)
def test_a_conversation_without_a_question(serve, real_engine, messages):
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match="There is no question to answer: write a message") as caught:
            ask(serve(real_engine).client(), messages, stream=stream)
        assert caught.value.param == "messages"


def test_the_tokens_are_the_engine_s(serve, real_engine):
    question = "What does the cat see"
    sampling = Sampling(temperature=0.8, max_new_tokens=12, seed=11)
    client = serve(real_engine).client()
    expected, actual, threads = {}, {}, []
    for name in ("base", "lora", "slim"):
        *_, step = real_engine.answer([Row(name, (Message("user", question),))], sampling)
        expected[name] = step.rows[0].text
        messages = [{"role": "user", "content": question}]

        def run(name=name, messages=messages):
            got = ask(client, messages, name, temperature=0.8, max_tokens=12, seed=11)
            actual[name] = got.choices[0].message.content

        threads.append(threading.Thread(target=run))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert actual == expected
