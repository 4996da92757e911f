# SPDX-License-Identifier: Apache-2.0
"""Requests as other programs send them, recorded while they talked to this server."""

from __future__ import annotations

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


def named(**programs):
    return pytest.mark.parametrize(
        "body",
        [
            pytest.param(body, id=f"{program} {way}")
            for program, ways in programs.items()
            for way, body in ways.items()
        ],
    )


@pytest.fixture
def post(serve, engine):
    url = serve(engine, key=KEY).url

    def send(path, body):
        return httpx.post(f"{url}/{path}", json=body, headers={"Authorization": f"Bearer {KEY}"})

    return send


@named(langchain=LANGCHAIN, promptfoo=PROMPTFOO)
def test_chats(post, body):
    response = post("chat/completions", {"model": "slim", **body})
    assert response.status_code == 200, response.text
    assert all(c["message"]["content"].startswith("SLIM says: turn1") for c in response.json()["choices"])
    assert len(response.json()["choices"]) == body.get("n", 1)
