# SPDX-License-Identifier: Apache-2.0
"""The gate in front of vLLM's server, which has the demo's base, its LoRA, and the static export of its SLIM."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from slim_core.demo.measure import TASKS, questions
from slim_core.inference import Engine, Message, Row, RowStep, Sampling, load_engine
from slim_core.paths import DEMO
from slim_core.serving.gate import Gate
from slim_core.serving.gate_proxy import gate_proxy
from tests.experiments.gate_agreement import export
from tests.serving.vllm_server import needs_vllm, serving, token_ids


pytestmark = needs_vllm
LONGEST = 48
QUESTIONS = [question.prompt for task in TASKS for question in questions(task, "test", 5)]
MODELS = ("base", "lora", "export")


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    """The static export of the demo's SLIM."""
    return export(tmp_path_factory.mktemp("export"))


@pytest.fixture(scope="module")
def engine(exported) -> Engine:
    engine = load_engine(DEMO / "base", lora=DEMO / "lora", slim=DEMO / "slim", device="cpu")
    engine.attach(exported, name="export")
    return engine


@pytest.fixture(scope="module")
def upstream(exported, tmp_path_factory) -> Iterator[str]:
    """Where vLLM's API is."""
    loras = {"lora": DEMO / "lora", "export": exported}
    with serving(loras, tmp_path_factory.mktemp("vllm") / "log", "--max-lora-rank", "64") as url:
        yield url


def answer(engine: Engine, model: str, question: str) -> RowStep:
    """The engine's own."""
    *_, step = engine.answer([Row(model, (Message("user", question),))], Sampling(max_new_tokens=LONGEST))
    return step.rows[0]


def test_its_tokens_are_the_engine_s(engine, upstream):
    for question in QUESTIONS:
        for model in MODELS:
            tokens = token_ids(upstream, model, [{"role": "user", "content": question}], LONGEST)
            assert tokens == answer(engine, model, question).token_ids


def test_its_answers_through_the_gate_are_the_engine_s(engine, upstream, serve_app):
    proxy = serve_app(gate_proxy(Gate(engine, "slim", 0.5, "base", "export"), "slim", upstream, 4))
    assert [model.id for model in proxy.client().models.list()] == ["slim", *MODELS]
    ask = proxy.client().chat.completions.create
    chosen = set()
    for number, question in enumerate(QUESTIONS):
        request = {"model": "slim", "messages": [{"role": "user", "content": question}], "max_tokens": LONGEST}
        completion = ask(**request, temperature=0)
        text = answer(engine, completion.model, question).text
        assert completion.choices[0].message.content.strip() == text.strip()
        if number % 8 == 0:
            pieces = [piece.choices[0].delta.content or "" for piece in ask(**request, temperature=0, stream=True)]
            assert "".join(pieces).strip() == text.strip()
        chosen.add(completion.model)
    assert chosen == {"base", "export"}
