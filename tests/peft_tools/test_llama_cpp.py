# SPDX-License-Identifier: Apache-2.0
"""llama.cpp writes the engine's tokens: with the base, and with adapters in GGUF.

Prompts are token ids. Texts, through llama.cpp's own server: `tests/serving/test_gate_llama_cpp.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from transformers import AutoModelForCausalLM, AutoTokenizer

from slim_core.demo import DOWNSTREAM_TASKS, GENERAL_TASKS
from slim_core.demo.measure import asked, questions
from slim_core.inference import Row, Sampling, load_engine
from slim_core.paths import DEMO
from slim_core.peft_tools import export_lora, lora_to_gguf
from tests.adapters.small import lora
from tests.inference.conftest import folders


pytest.importorskip("gguf", reason='needs gguf: pip install "slim-core[gguf]"')
pytest.importorskip("llama_cpp", reason="needs llama-cpp-python, which takes long to compile")

import llama_cpp

from tests.peft_tools.gguf_files import write_llama


__all__ = ["folders"]
LONGEST = 24


def loaded(base: Path):
    return AutoModelForCausalLM.from_pretrained(base).eval()


def prompts_of(tasks: Sequence[str], each: int) -> list[tuple[int, ...]]:
    """Token ids of chats with a question, up to where the answer begins."""
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "base")
    chats = [asked(question) for task in tasks for question in questions(task, "test", each)]
    return [tuple(tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]) for chat in chats]


def save_random(base: Path, folder: Path) -> None:
    """A LoRA whose Linears have different ranks."""
    get_peft_model(loaded(base), lora(target_modules="all-linear", rank_pattern={"q_proj": 6})).save_pretrained(folder)


def save_export(base: Path, folder: Path) -> None:
    """The demo's SLIM as a plain LoRA, with the routing that it has on questions that it was trained for."""
    batches = [{"input_ids": torch.tensor([ids])} for ids in prompts_of(DOWNSTREAM_TASKS, 2)]
    export_lora(PeftModel.from_pretrained(loaded(base), DEMO / "slim"), "default", batches, folder)


def written(base: Path, adapter: Path | None, prompts: list[tuple[int, ...]], closing: int) -> list[list[int]]:
    """llama.cpp's greedy tokens up to the closing one, which is not among them."""
    path = None if adapter is None else str(adapter)
    kept = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}
    llama = llama_cpp.Llama(str(base), lora_path=path, n_ctx=512, n_threads=1, verbose=False, **kept)
    answers = []
    for prompt in prompts:
        llama.reset()
        answer: list[int] = []
        for token in llama.generate(prompt, temp=0.0, repeat_penalty=1.0):
            if token == closing or len(answer) == LONGEST:
                break
            answer.append(token)
        answers.append(answer)
    llama.close()
    return answers


@pytest.mark.parametrize("which", ["random", "lora", "export"])
def test_it_writes_the_engine_s_tokens(which, folders, tmp_path):
    base, adapter = DEMO / "base", tmp_path / which
    prompts = prompts_of([*GENERAL_TASKS, *DOWNSTREAM_TASKS], 5)
    assert len(prompts) == 40
    if which == "random":
        base = folders.base
        save_random(base, adapter)
        size = loaded(base).config.vocab_size
        torch.manual_seed(5)
        prompts = [tuple(torch.randint(8, size, (length,)).tolist()) for length in range(4, 44)]
    elif which == "lora":
        adapter = DEMO / "lora"
    else:
        save_export(base, adapter)
    model = PeftModel.from_pretrained(loaded(base), adapter)
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    write_llama(loaded(base), tmp_path / "base.gguf")
    lora_to_gguf(model.peft_config["default"], state, model.config, tmp_path / "adapter.gguf")
    engine, answers = load_engine(base, lora=adapter, device="cpu"), {}
    closing = AutoTokenizer.from_pretrained(base).eos_token_id
    for name, file in (("base", None), ("lora", tmp_path / "adapter.gguf")):
        rows = [Row(name, (), text=prompt) for prompt in prompts]
        *_, step = engine.answer(rows, Sampling(max_new_tokens=LONGEST))
        answers[name] = [list(row.token_ids) for row in step.rows]
        assert written(tmp_path / "base.gguf", file, prompts, closing) == answers[name]
    # The adapter does something.
    assert answers["base"] != answers["lora"]
