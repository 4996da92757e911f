# SPDX-License-Identifier: Apache-2.0
"""A small base model with a tokenizer of its own on disk, and data to train it on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from slim_core.training import TrainSettings
from tests.conftest import tiny_llama


TOPICS = ("red", "blue", "green", "seven", "eleven", "a café", "the “sea”", "x < y")
PAIRS = [(f"What comes after {topic}, {i}?", f"After {topic} comes number {i}.") for i, topic in enumerate(TOPICS * 3)]
# As Qwen and others write a conversation.
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def small_tokenizer(template: str | None = None) -> PreTrainedTokenizerFast:
    """Byte-level BPE of about 300 tokens, trained on the pairs."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([text for pair in PAIRS for text in pair], trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", model_max_length=64
    )
    made.chat_template = template
    return made


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    """A folder with a Llama of one block, 256 tokens of context, and the tokenizer, without a chat template."""
    path = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    sizes = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 64, "head_dim": 16, "num_hidden_layers": 1}
    tiny_llama(**sizes, max_position_embeddings=256).save_pretrained(path)
    small_tokenizer().save_pretrained(path)
    return path


@pytest.fixture
def pairs(tmp_path) -> Path:
    """A JSONL file of 24 pairs."""
    return write_jsonl(tmp_path / "pairs.jsonl", [{"prompt": q, "completion": a} for q, a in PAIRS])


def write_jsonl(path: Path, records: list[dict]) -> Path:
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    return path


def settings(base: Path, data: Path, output: Path, **changes) -> TrainSettings:
    """Small enough for a second: 6 steps of 4 examples, experts of rank 2."""
    small = {"r": 2, "num_experts": 4, "batch_size": 4, "max_steps": 6, "log_every": 1, "learning_rate": 0.01}
    defaults = {"slim": {"num_clusters": 4}, "validation_share": 0.1}
    return TrainSettings(base=str(base), data=[str(data)], output=output, **(small | defaults | changes))
