# SPDX-License-Identifier: Apache-2.0
"""Open WebUI's server gives the answers that the API gives directly. Its page is in `tests/ui`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from slim_core.demo.measure import TASKS, questions
from tests.serving.open_webui import MODELS, Messages, OpenWebUI, needs_open_webui, running


pytestmark = needs_open_webui
QUESTIONS = [questions(task, "test", 1)[0].prompt for task in TASKS]


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Iterator[OpenWebUI]:
    with running(tmp_path_factory.mktemp("open-webui")) as program:
        yield program


def ask(program: OpenWebUI, model: str, messages: Messages, **options: Any) -> httpx.Response:
    request = {"model": model, "messages": messages, "temperature": 0, "stream": False, **options}
    return program.client.post("/api/chat/completions", json=request)


def content(response: httpx.Response) -> str:
    return response.json()["choices"][0]["message"]["content"]


def streamed(response: httpx.Response) -> str:
    events = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    assert events.pop() == "[DONE]"
    return "".join(json.loads(event)["choices"][0]["delta"].get("content", "") for event in events)


def test_its_models_are_the_variants(program):
    assert {model["id"] for model in program.client.get("/api/models").json()["data"]} == set(MODELS)


def test_its_answers_are_the_api_s(program):
    answers = {model: [] for model in MODELS}
    for question, next_question in zip(QUESTIONS, [*QUESTIONS[1:], QUESTIONS[0]], strict=True):
        for model in MODELS:
            messages = [{"role": "user", "content": question}]
            first = program.direct(model, messages)
            second = [*messages, {"role": "assistant", "content": first}, {"role": "user", "content": next_question}]
            for turn in (messages, second):
                expected = program.direct(model, turn)
                assert content(ask(program, model, turn)) == expected
                assert streamed(ask(program, model, turn, stream=True)) == expected
            answers[model].append(first)
    assert answers["base"] != answers["slim"] != answers["lora"]


def test_an_answer_that_has_begun(program):
    question = {"role": "user", "content": "What is 7 + 8?"}
    whole = program.direct("slim", [question])
    begun = [question, {"role": "assistant", "content": whole[:5]}]
    assert whole[:5] + streamed(ask(program, "slim", begun, stream=True)) == whole


def test_its_parameters(program):
    messages = [{"role": "user", "content": QUESTIONS[-1]}]
    sampling = {"temperature": 0.9, "seed": 3, "max_tokens": 20, "top_k": 40, "top_p": 0.95, "min_p": 0}
    params = sampling | {"custom_params": {"slim_strength": "0"}}
    request = {"model": "slim", "messages": messages, "stream": False, "params": params}
    beyond = {name: sampling.pop(name) for name in ("top_k", "min_p")} | {"slim_strength": 0}
    create = program.api.client().chat.completions.create
    expected = create(model="slim", messages=messages, **sampling, extra_body=beyond).choices[0].message.content
    assert content(program.client.post("/api/chat/completions", json=request)) == expected


def test_a_parameter_that_is_refused(program):
    refused = ask(program, "slim", [{"role": "user", "content": "Hi"}], params={"repeat_penalty": 1.1})
    assert refused.status_code == 400
    assert refused.json()["error"]["message"] == "repeat_penalty is not a field that this server knows."
