# SPDX-License-Identifier: Apache-2.0
"""Requests as other programs send them: recorded while they talked to this server, or as their source builds them."""

from __future__ import annotations

import json

import httpx
import pytest

from tests.serving.conftest import KEY


QUESTION = "What is the capital of France?"
ASKED = [{"content": QUESTION, "role": "user"}]
LANGCHAIN = {
    "invoke": {"stream": False, "messages": ASKED, "temperature": 0.0},
    "choices": {"stream": False, "messages": ASKED, "max_completion_tokens": 5, "n": 2, "temperature": 0.0},
    "log-probabilities": {
        "stream": False, "messages": ASKED, "logprobs": True, "temperature": 0.0, "top_logprobs": 3,
    },
    "parts": {"stream": False, "messages": [{"content": [{"type": "text", "text": QUESTION}], "role": "user"}]},
    "named": {"stream": False, "messages": [{"content": QUESTION, "name": "bob", "role": "user"}]},
}  # fmt: skip
PROMPTFOO = {
    "all": {
        "messages": ASKED, "seed": 3, "max_tokens": 20, "temperature": 0, "top_p": 0.9, "presence_penalty": 0,
        "frequency_penalty": 0, "response_format": {"type": "text"}, "stop": ["zz"], "logprobs": True,
        "slim_strength": 0,
    },
}  # fmt: skip
# Of version 0.12.4, whose server removes its own fields (chat_id, session_id, features, metadata, …) before it sends.
# `test_open_webui.py` runs it.
OPEN_WEBUI = {
    "parameters": {
        "messages": [{"role": "system", "content": "Be brief."}, *ASKED], "stream": False, "temperature": 0.8,
        "seed": 0, "max_tokens": 64, "top_k": 40, "top_p": 0.9, "min_p": 0,
    },
    "task": {"messages": ASKED, "stream": False, "max_tokens": 50},
    "pipeline": {"messages": ASKED, "stream": False, "user": {"name": "Ann", "id": "1", "role": "admin"}},
}  # fmt: skip


def sent_by(**programs):
    bodies = {f"{name} {way}": body for name, ways in programs.items() for way, body in ways.items()}
    return pytest.mark.parametrize("body", bodies.values(), ids=bodies)


@pytest.fixture
def post(serve, engine):
    url = serve(engine, key=KEY).url

    def send(body):
        headers = {"Authorization": f"Bearer {KEY}", "X-OpenWebUI-User-Id": "1"}
        return httpx.post(f"{url}/chat/completions", json={"model": "slim", **body}, headers=headers)

    return send


@sent_by(langchain=LANGCHAIN, promptfoo=PROMPTFOO, open_webui=OPEN_WEBUI)
def test_chats(post, body):
    response = post(body)
    assert response.status_code == 200, response.text
    assert all(c["message"]["content"].startswith("SLIM says: turn1") for c in response.json()["choices"])
    assert len(response.json()["choices"]) == body.get("n", 1)


def test_a_stream_of_open_webui(post):
    response = post({"messages": ASKED, "stream": True, "stream_options": {"include_usage": True}})
    assert response.headers["content-type"].startswith("text/event-stream")
    events = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    assert events.pop() == "[DONE]"
    pieces = [json.loads(event) for event in events]
    text = "".join(piece["choices"][0]["delta"].get("content", "") for piece in pieces if piece["choices"])
    assert text.startswith("SLIM says: turn1") and pieces[-1]["usage"]["completion_tokens"] > 0


def test_tools_are_refused_with_a_sentence(post):
    """Open WebUI sends its own unless they are switched off; LangChain those that are bound."""
    tool = {"type": "function", "function": {"name": "search_web", "parameters": {"type": "object"}}}
    for more in ({}, {"parallel_tool_calls": False}):
        error = post({"messages": ASKED, "tools": [tool], **more}).json()["error"]
        assert error["message"] == "This server does not support tools; leave it out."
        assert (error["param"], error["code"]) == ("tools", "unsupported_parameter")
