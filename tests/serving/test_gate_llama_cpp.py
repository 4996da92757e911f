# SPDX-License-Identifier: Apache-2.0
"""The gate in front of llama-cpp-python's server, which has the demo's base and LoRA as GGUF."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from peft import PeftConfig
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from slim_core.demo.measure import TASKS, questions
from slim_core.inference import Message, Row, Sampling, load_engine
from slim_core.paths import DEMO
from slim_core.peft_tools import lora_to_gguf
from slim_core.serving.gate import Gate
from slim_core.serving.gate_proxy import gate_proxy
from tests.serving.conftest import Server


pytest.importorskip("gguf", reason='needs gguf: pip install "slim-core[gguf]"')
pytest.importorskip("llama_cpp.server.app", reason='needs "llama-cpp-python[server]", which takes long to compile')

import llama_cpp
from llama_cpp.server import app
from llama_cpp.server.settings import ModelSettings, ServerSettings

from tests.peft_tools.gguf_files import write_llama


LONGEST = 48
QUESTIONS = [question.prompt for task in TASKS for question in questions(task, "test", 5)]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[Path, Path]:
    """The demo's base and LoRA."""
    folder = tmp_path_factory.mktemp("gguf")
    model = AutoModelForCausalLM.from_pretrained(DEMO / "base")
    base = write_llama(model, folder / "base.gguf", AutoTokenizer.from_pretrained(DEMO / "base"))
    state = load_file(DEMO / "lora" / "adapter_model.safetensors")
    lora_to_gguf(PeftConfig.from_pretrained(DEMO / "lora"), state, model.config, folder / "lora.gguf")
    return base, folder / "lora.gguf"


@pytest.fixture
def upstream(files, serve_app: Callable[..., Server]) -> Iterator[Server]:
    """Both as models of one server, with keys and values in float32."""
    base, lora = map(str, files)
    same = {"model": base, "n_ctx": 512, "n_threads": 1, "n_threads_batch": 1, "type_k": 0, "type_v": 0}
    models = [
        ModelSettings(model_alias="base", verbose=False, **same),
        ModelSettings(model_alias="lora", lora_path=lora, verbose=False, **same),
    ]
    yield serve_app(app.create_app(server_settings=ServerSettings(), model_settings=models))
    app._llama_proxy.free()


def test_it_divides_text_as_the_demo_s_tokenizer_does(files):
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "base")
    llama = llama_cpp.Llama(str(files[0]), vocab_only=True, verbose=False)
    for text in (*QUESTIONS, 'it\'s (a) test - "quoted", 12.5 %\n\nNew  line?! <x> a/b'):
        chat = tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False)
        expected = tokenizer(chat, add_special_tokens=False).input_ids
        assert llama.tokenize(chat.encode(), add_bos=False, special=True) == expected
    llama.close()


def test_its_answers_are_the_engine_s(upstream, serve_app):
    engine = load_engine(DEMO / "base", lora=DEMO / "lora", slim=DEMO / "slim", device="cpu")
    proxy = serve_app(gate_proxy(Gate(engine, "slim", 0.5, "base", "lora"), "slim", upstream.url, 4))
    assert [model.id for model in proxy.client().models.list()] == ["slim", "base", "lora"]
    ask = proxy.client().chat.completions.create
    chosen = set()
    for number, question in enumerate(QUESTIONS):
        request = {"model": "slim", "messages": [{"role": "user", "content": question}], "max_tokens": LONGEST}
        completion = ask(**request, temperature=0)
        row = Row(completion.model, (Message("user", question),))
        *_, step = engine.answer([row], Sampling(max_new_tokens=LONGEST))
        assert completion.choices[0].message.content.strip() == step.rows[0].text.strip()
        if number % 8 == 0:
            pieces = [piece.choices[0].delta.content or "" for piece in ask(**request, temperature=0, stream=True)]
            assert "".join(pieces).strip() == step.rows[0].text.strip()
        chosen.add(completion.model)
    assert chosen == {"base", "lora"}
