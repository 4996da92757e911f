# SPDX-License-Identifier: Apache-2.0
"""The gate in front of vLLM's server, which has the demo's base, its LoRA, and the static export of its SLIM.

vLLM needs an environment of its own: `SLIM_TEST_VLLM` names the Python in it.
"""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from slim_core.demo.measure import TASKS, questions
from slim_core.inference import Engine, Message, Row, RowStep, Sampling, load_engine
from slim_core.paths import DEMO
from slim_core.serving.gate import Gate
from slim_core.serving.gate_proxy import gate_proxy
from tests.experiments.gate_agreement import export
from tests.waiting import PATIENCE, until


PYTHON = os.environ.get("SLIM_TEST_VLLM")
pytestmark = pytest.mark.skipif(not PYTHON, reason="needs vLLM: set SLIM_TEST_VLLM to the Python that has it")
LONGEST, START = 48, 240
QUESTIONS = [question.prompt for task in TASKS for question in questions(task, "test", 5)]
MODELS = ("base", "lora", "export")
# One thread, so that it leaves the other cores alone, and a small key-value cache, in GiB.
SETTINGS = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}


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
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", DEMO / "base"]
    command += ["--served-model-name", "base", "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
    command += ["--max-model-len", "512", "--enforce-eager", "--enable-lora", "--max-lora-rank", "64"]
    command += ["--max-loras", "2", "--lora-modules", f"lora={DEMO / 'lora'}", f"export={exported}"]
    log = tmp_path_factory.mktemp("vllm") / "log"
    url = f"http://127.0.0.1:{port}/v1"
    client = openai.OpenAI(base_url=url, api_key="-", max_retries=0)

    def ready() -> bool:
        assert server.poll() is None, log.read_text()[-3000:]
        try:
            return {model.id for model in client.models.list()} == set(MODELS)
        except openai.APIConnectionError:
            return False

    with log.open("w") as out:
        server = subprocess.Popen(command, env=os.environ | SETTINGS, stdout=out, stderr=subprocess.STDOUT)
    try:
        until(ready, START)
        yield url
    finally:
        server.terminate()
        server.wait(30 * PATIENCE)


def answer(engine: Engine, model: str, question: str) -> RowStep:
    """The engine's own."""
    *_, step = engine.answer([Row(model, (Message("user", question),))], Sampling(max_new_tokens=LONGEST))
    return step.rows[0]


def test_its_tokens_are_the_engine_s(engine, upstream):
    ask = openai.OpenAI(base_url=upstream, api_key="-").chat.completions.create
    for question in QUESTIONS:
        for model in MODELS:
            choice = ask(
                model=model,
                messages=[{"role": "user", "content": question}],
                max_tokens=LONGEST,
                temperature=0,
                extra_body={"return_token_ids": True},
            ).choices[0]
            # vLLM counts the end of the answer as one of its tokens.
            tokens = choice.token_ids[:-1] if choice.finish_reason == "stop" else choice.token_ids
            assert tuple(tokens) == answer(engine, model, question).token_ids


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
