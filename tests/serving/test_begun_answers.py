# SPDX-License-Identifier: Apache-2.0
"""A chat whose last message is the model's: that answer goes on, as if it had never been interrupted."""

from __future__ import annotations

import pytest

from slim_core.demo.measure import TASKS, questions
from slim_core.inference import load_engine
from slim_core.paths import DEMO
from tests.serving.conftest import KEY


MODELS = ("base", "lora", "slim")
QUESTIONS = [questions(task, "test", 1)[0].prompt for task in TASKS]


@pytest.fixture(scope="module")
def demo():
    return load_engine(DEMO / "base", lora=DEMO / "lora", slim=DEMO / "slim", device="cpu")


def test_the_rest_is_what_would_have_come(serve, demo):
    ask = serve(demo, key=KEY).client().chat.completions.create
    spaced = 0
    for question in QUESTIONS:
        for model in MODELS:
            asked = {"model": model, "temperature": 0, "max_tokens": 48}
            messages = [{"role": "user", "content": question}]
            whole = ask(messages=messages, **asked).choices[0].message.content
            for length in (1, 2, 5):
                begun = ask(messages=messages, **asked | {"max_tokens": length}).choices[0].message
                request = {"messages": [*messages, begun.model_dump()], **asked}
                assert begun.content + ask(**request).choices[0].message.content == whole
                spaced += begun.content.endswith(" ")
            pieces = [piece.choices[0].delta.content or "" for piece in ask(**request, stream=True)]
            assert begun.content + "".join(pieces) == whole
    assert spaced  # an interruption before a number


def test_an_answer_that_is_done_does_not_go_on(serve, demo):
    messages = [
        {"role": "user", "content": "What is the capital of France?"},
        {"role": "assistant", "content": "Paris"},
    ]
    for model in MODELS:
        answer = serve(demo).client().chat.completions.create(model=model, messages=messages, temperature=0)
        assert answer.choices[0].message.content == "" and answer.choices[0].finish_reason == "stop"


def test_an_answer_that_has_not_begun(serve, real_engine):
    ask = serve(real_engine).client().chat.completions.create
    question = {"role": "user", "content": "What does the cat see"}
    texts = [
        ask(model="slim", messages=[question, *more], temperature=0, max_tokens=8).choices[0].message.content
        for more in ([], [{"role": "assistant", "content": ""}], [{"role": "assistant", "content": " \n"}])
    ]
    assert texts[0] and texts == [texts[0]] * 3
