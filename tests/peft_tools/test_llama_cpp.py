# SPDX-License-Identifier: Apache-2.0
"""llama.cpp writes the engine's tokens: with the base, and with adapters in GGUF.

Prompts are token ids, since llama.cpp has no tokenizer of the demo's kind.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict
from transformers import AutoModelForCausalLM, AutoTokenizer

from slim_core.demo import DOWNSTREAM_TASKS, GENERAL_TASKS
from slim_core.demo.measure import asked, questions
from slim_core.inference import Row, Sampling, load_engine
from slim_core.paths import DEMO
from slim_core.peft_tools import export_lora, lora_to_gguf


pytest.importorskip("gguf", reason='needs gguf: pip install "slim-core[gguf]"')
pytest.importorskip("llama_cpp", reason="needs llama-cpp-python, which takes long to compile")

import llama_cpp

from tests.peft_tools.gguf_files import write_llama


LONGEST = 24


def prompts_of(tasks, each: int) -> list[tuple[int, ...]]:
    """Token ids of chats with a question, up to where the answer begins."""
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "base")
    chats = [asked(question) for task in tasks for question in questions(task, "test", each)]
    return [tuple(tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]) for chat in chats]


def base():
    return AutoModelForCausalLM.from_pretrained(DEMO / "base").eval()


@pytest.fixture(scope="module")
def export(tmp_path_factory) -> Path:
    """The demo's SLIM as a plain LoRA, with the routing that it has on questions that it was trained for."""
    folder = tmp_path_factory.mktemp("export")
    batches = [{"input_ids": torch.tensor([ids])} for ids in prompts_of(DOWNSTREAM_TASKS, 2)]
    export_lora(PeftModel.from_pretrained(base(), DEMO / "slim"), "default", batches, folder)
    return folder


@pytest.fixture(scope="module")
def gguf_base(tmp_path_factory) -> Path:
    return write_llama(base(), tmp_path_factory.mktemp("gguf") / "base.gguf")


def written(model: Path, adapter: Path | None, prompts, closing: int) -> list[list[int]]:
    """llama.cpp's greedy tokens up to the closing one, which is not among them."""
    path = None if adapter is None else str(adapter)
    llama = llama_cpp.Llama(str(model), lora_path=path, n_ctx=512, n_threads=1, verbose=False)
    answers = []
    for prompt in prompts:
        llama.reset()
        answers.append([])
        for token in llama.generate(prompt, temp=0.0, repeat_penalty=1.0):
            if token == closing or len(answers[-1]) == LONGEST:
                break
            answers[-1].append(token)
    llama.close()
    return answers


@pytest.mark.parametrize("which", ["lora", "export"])
def test_it_writes_the_engine_s_tokens(which, gguf_base, export, tmp_path):
    folder = DEMO / "lora" if which == "lora" else export
    model = PeftModel.from_pretrained(base(), folder)
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    lora_to_gguf(model.peft_config["default"], state, base().config, tmp_path / "adapter.gguf")
    prompts = prompts_of([*GENERAL_TASKS, *DOWNSTREAM_TASKS], 5)
    assert len(prompts) >= 40
    engine = load_engine(DEMO / "base", lora=folder, device="cpu")
    answers = {}
    for name, adapter in (("base", None), ("lora", tmp_path / "adapter.gguf")):
        rows = [Row(name, (), text=prompt) for prompt in prompts]
        *_, step = engine.answer(rows, Sampling(max_new_tokens=LONGEST))
        answers[name] = [list(row.token_ids) for row in step.rows]
        assert written(gguf_base, adapter, prompts, base().config.eos_token_id) == answers[name]
    assert answers["base"] != answers["lora"]  # the adapter does something
