# SPDX-License-Identifier: Apache-2.0
"""The gate in front of a LoRA server: the demo's SLIM judges, its base and its static export answer."""

from __future__ import annotations

import socket
import threading

import httpx
import openai
import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from slim_core import export_lora
from slim_core.demo.measure import asked, questions
from slim_core.inference import Engine, load_engine
from slim_core.paths import DEMO
from slim_core.serving.gate import Gate
from slim_core.serving.gate_proxy import gate_proxy
from tests.serving.conftest import KEY


GENERAL, TRAINED = "What is 7 + 8?", questions("obqa", "test", 1)[0].prompt


@pytest.fixture(scope="module")
def judging() -> Engine:
    return load_engine(DEMO / "base", slim=DEMO / "slim")


@pytest.fixture(scope="module")
def answering(tmp_path_factory) -> Engine:
    """The demo's base with the static export of its SLIM, frozen over questions that it was trained for."""
    folder = tmp_path_factory.mktemp("export")
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(DEMO / "base"), DEMO / "slim")
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "base")
    chats = [asked(example) for example in questions("obqa", "train", 16)]
    encoded = tokenizer.apply_chat_template(chats, return_tensors="pt", return_dict=True, padding=True)
    export_lora(model, "default", [{name: encoded[name] for name in ("input_ids", "attention_mask")}], folder)
    return load_engine(DEMO / "base", lora=folder)


@pytest.fixture
def upstream(answering, serve):
    return serve(answering, key=KEY)


@pytest.fixture
def proxy(judging, upstream, serve_app):
    return serve_app(gate_proxy(Gate(judging, "slim", 0.5, "base", "lora"), "slim", upstream.url, 4))


def chat(server, content: str, model: str = "slim", **options):
    messages = [{"role": "user", "content": content}]
    return server.client().chat.completions.create(model=model, messages=messages, temperature=0, **options)


@pytest.mark.parametrize(("question", "goes_to"), [(GENERAL, "base"), (TRAINED, "lora")])
def test_a_prompt_is_answered_by_the_model_that_the_gate_chose(question, goes_to, proxy, upstream):
    raw = proxy.client().chat.completions.with_raw_response.create(
        model="slim", messages=[{"role": "user", "content": question}], temperature=0
    )
    expected = chat(upstream, question, goes_to)
    completion = raw.parse()
    assert completion.model == goes_to and raw.headers["x-slim-model"] == goes_to
    assert (float(raw.headers["x-slim-identity"]) >= 0.5) == (goes_to == "base")
    assert completion.choices[0].message.content == expected.choices[0].message.content
    assert completion.usage == expected.usage


@pytest.mark.parametrize(("question", "goes_to"), [(GENERAL, "base"), (TRAINED, "lora")])
def test_a_stream_is_passed_through(question, goes_to, proxy, upstream):
    pieces = list(chat(proxy, question, stream=True, stream_options={"include_usage": True}))
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
    assert len(pieces) > 3 and {piece.model for piece in pieces} == {goes_to}
    assert text == chat(upstream, question, goes_to).choices[0].message.content


def test_each_turn_is_judged_by_itself(proxy):
    def asks(*contents):
        roles = ("user", "assistant") * 2
        messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
        return proxy.client().chat.completions.create(model="slim", messages=messages, max_tokens=4).model

    assert asks(GENERAL, "15.", TRAINED) == "lora"
    assert asks(TRAINED, "answer1", GENERAL) == "base"


def test_plain_text_and_token_ids_are_judged_too(proxy, judging):
    text = f"<|bos|><|user|> {TRAINED}<|end|><|assistant|>"
    ids = AutoTokenizer.from_pretrained(DEMO / "base")(text, add_special_tokens=False).input_ids
    complete = proxy.client().completions.create
    assert complete(model="slim", prompt="Once upon a time", max_tokens=4).model == "base"
    assert complete(model="slim", prompt=ids, max_tokens=4).model == "lora"
    assert complete(model="slim", prompt=[ids], max_tokens=4).model == "lora"


def test_other_models_are_passed_on_unread(proxy, upstream):
    for name in ("base", "lora"):
        assert chat(proxy, TRAINED, name).choices == chat(upstream, TRAINED, name).choices
    with pytest.raises(openai.NotFoundError, match="There is no model 'other' here; there are base, lora"):
        chat(proxy, TRAINED, "other")


def test_the_models_are_the_gate_and_what_is_behind_it(proxy):
    models = proxy.client().models
    assert [model.id for model in models.list()] == ["slim", "base", "lora"]
    assert models.retrieve("slim").owned_by == "slim" and models.retrieve("lora").id == "lora"
    with pytest.raises(openai.NotFoundError, match="There is no model 'other' here"):
        models.retrieve("other")
    assert httpx.get(proxy.url.removesuffix("/v1") + "/health").json() == {"status": "ok"}


def test_the_key_is_the_upstreams(proxy):
    messages = [{"role": "user", "content": GENERAL}]
    with pytest.raises(openai.AuthenticationError, match="The API key is missing or wrong"):
        proxy.client("another").chat.completions.create(model="slim", messages=messages)
    with pytest.raises(openai.AuthenticationError):
        proxy.client("another").models.list()


@pytest.mark.parametrize(
    ("path", "body", "sentence"),
    [
        ("chat/completions", b"{", "The body of the request is not JSON in UTF-8."),
        ("chat/completions", [1], "The request must be a JSON object."),
        ("chat/completions", {"model": "slim", "messages": []}, "messages must be a list that is not empty, not []."),
        ("completions", {"model": "slim"}, "prompt is missing."),
        (
            "completions",
            {"model": "slim", "prompt": ["a", "b"]},
            "one prompt at a time; 2 were given.",
        ),
        ("completions", {"model": "slim", "prompt": ""}, "There is no text to continue: write some."),
        ("completions", {"model": "slim", "prompt": [99999]}, "99999"),
        ("embeddings", {"model": "slim", "input": "a"}, "'POST /v1/embeddings' is not part of this API."),
    ],
)
def test_what_cannot_be_judged_is_one_sentence(path, body, sentence, proxy):
    sent = {"content": body} if isinstance(body, bytes) else {"json": body}
    response = httpx.post(f"{proxy.url}/{path}", headers={"Authorization": f"Bearer {KEY}"}, **sent)
    assert response.status_code == (404 if path == "embeddings" else 400)
    assert sentence in response.json()["error"]["message"] and "\n" not in response.json()["error"]["message"]


def test_no_more_are_judged_than_there_are_places(judging, upstream, serve_app):
    begun, go_on = threading.Event(), threading.Event()

    class Slow(Gate):
        def judge(self, body, visitor=None):
            begun.set()
            assert go_on.wait(30)
            return super().judge(body, visitor)

    server = serve_app(gate_proxy(Slow(judging, "slim", 0.5, "base", "lora"), "slim", upstream.url, 1))
    first = threading.Thread(target=chat, args=(server, GENERAL))
    first.start()
    assert begun.wait(30)
    with pytest.raises(openai.RateLimitError, match="1 prompts are being judged"):
        chat(server, GENERAL)
    go_on.set()
    first.join()
    assert chat(server, GENERAL).model == "base"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def test_an_upstream_that_is_down_is_one_sentence(judging, serve_app):
    address = f"http://127.0.0.1:{free_port()}/v1"
    server = serve_app(gate_proxy(Gate(judging, "slim", 0.5, "base", "lora"), "slim", address, 4))
    for call in (
        lambda: chat(server, GENERAL),
        lambda: chat(server, GENERAL, stream=True),
        server.client().models.list,
    ):
        with pytest.raises(openai.InternalServerError) as down:
            call()
        assert down.value.status_code == 502
        assert f"The server behind the gate, {address}, does not answer: " in down.value.message


@pytest.mark.parametrize("kind", ["text/event-stream", "application/json"])
def test_an_upstream_that_breaks_off_is_one_sentence(kind, judging, serve_app):
    """It sends the beginning of an answer, and then closes the connection."""
    listener = socket.create_server(("127.0.0.1", 0))
    piece = b'data: {"id": "a", "object": "chat.completion.chunk", "created": 0, "model": "base", "choices": []}\n\n'

    def answer():
        connection, _ = listener.accept()
        with connection:
            connection.recv(100_000)
            head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: 9999\r\n\r\n"
            connection.sendall(head.encode() + piece)

    thread = threading.Thread(target=answer)
    thread.start()
    address = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    server = serve_app(gate_proxy(Gate(judging, "slim", 0.5, "base", "lora"), "slim", address, 4))
    with pytest.raises(openai.APIError, match=r"The server behind the gate, .*, does not answer: ") as broken:
        if kind == "text/event-stream":
            assert len(list(chat(server, GENERAL, stream=True))) == 1
        else:
            chat(server, GENERAL)
    if kind == "application/json":
        assert broken.value.status_code == 502
    thread.join()
    listener.close()


def test_a_list_of_models_in_another_form_is_one_sentence(judging, serve_app):
    app = serve_app(_odd())
    server = serve_app(gate_proxy(Gate(judging, "slim", 0.5, "base", "lora"), "slim", app.url, 4))
    with pytest.raises(openai.InternalServerError, match="is not in OpenAI's format"):
        server.client().models.list()


def _odd():
    from fastapi import FastAPI

    app = FastAPI()
    app.get("/v1/models")(lambda: ["base"])
    return app
