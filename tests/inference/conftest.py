# SPDX-License-Identifier: Apache-2.0
"""A tiny base model on disk with a trained-looking LoRA and SLIM, and an engine around them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel

from slim_core import SlimConfig
from slim_core.demo.chat import train_tokenizer
from slim_core.inference import Engine, Message, Row, Sampling, Step, load_engine
from slim_core.inference.batch import Batch
from tests.conftest import tiny_llama


TEXTS = ["What is the capital of Peru? It is Lima.", "The sea is blue and the sun is red, they say."]
QUESTION = (Message("user", "What is the capital of Peru?"),)
LONGER = (Message("user", "The sea is blue and the sun is red. What is the capital of the sea?"),)
SHORT = (Message("user", "Lima"),)


@dataclass(frozen=True)
class Folders:
    base: Path
    lora: Path
    slim: Path


def tiny_base(**changes) -> PreTrainedModel:
    """Two blocks. Its weights are large, so that its answers depend on what it reads."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(TEXTS)
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 256, "initializer_range": 0.3}
    return tiny_llama(**(sizes | {"eos_token_id": tokenizer.eos_token_id} | changes)).eval()


def save_slim(folder: Path, base: PreTrainedModel, **changes) -> None:
    """A SLIM adapter whose clusters have slid and whose experts do something."""
    sizes = {"r": 2, "num_experts": 3, "num_identity": 2, "num_clusters": 4, "init_weights": False}
    config = SlimConfig(**(sizes | {"target_modules": "all-linear", "task_type": "CAUSAL_LM"} | changes))
    model = get_peft_model(base, config)
    model.train()(torch.randint(3, base.config.vocab_size, (4, 10)))
    model.eval().save_pretrained(folder, save_embedding_layers=False)
    model.unload()


def save_lora(folder: Path, base: PreTrainedModel, **changes) -> None:
    config = LoraConfig(**({"r": 4, "target_modules": "all-linear", "init_lora_weights": False} | changes))
    model = get_peft_model(base, config)
    model.save_pretrained(folder)
    model.unload()


def save_dora(folder: Path, base: PreTrainedModel) -> None:
    """A DoRA whose magnitudes are not those that it begins with."""
    config = LoraConfig(
        r=4, target_modules="all-linear", init_lora_weights=False, use_dora=True, task_type="CAUSAL_LM"
    )
    model = get_peft_model(base, config)
    for name, parameter in model.named_parameters():
        if "magnitude" in name:
            parameter.data.mul_(torch.rand_like(parameter) + 0.5)
    model.save_pretrained(folder)
    model.unload()


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> Folders:
    root = tmp_path_factory.mktemp("variants")
    made = Folders(root / "base", root / "lora", root / "slim")
    base = tiny_base()
    base.save_pretrained(made.base)
    train_tokenizer(TEXTS).save_pretrained(made.base)
    save_lora(made.lora, base)
    save_slim(made.slim, base)
    return made


@pytest.fixture
def engine(folders) -> Engine:
    return load_engine(folders.base, lora=folders.lora, slim=folders.slim, device="cpu")


def rows(*messages: tuple[Message, ...], routing: bool = False) -> list[Row]:
    """Base, LoRA and SLIM with a conversation each, or all with the same."""
    names = ("base", "lora", "slim")
    messages = messages * 3 if len(messages) == 1 else messages
    return [Row(name, m, routing) for name, m in zip(names, messages, strict=True)]


def last(engine: Engine, asked: list[Row], sampling: Sampling | None = None, **options) -> Step:
    """The end of an answer."""
    *_, step = engine.answer(asked, sampling or Sampling(max_new_tokens=12), **options)
    assert step.done
    return step


def ids(step: Step) -> list[tuple[int, ...]]:
    return [row.token_ids for row in step.rows]


def logits_of(engine: Engine, asked: list[Row], monkeypatch, tokens: int = 10) -> list[dict[int, torch.Tensor]]:
    """Logits of every step of one call, each (V,), by whose they are."""
    steps = []
    original = Batch.forward

    def forward(self):
        logits = original(self)
        steps.append({answer.index: row.clone() for answer, row in zip(self.answers, logits, strict=True)})
        return logits

    with monkeypatch.context() as patch:
        patch.setattr(Batch, "forward", forward)
        last(engine, asked, Sampling(max_new_tokens=tokens))
    return steps
