# SPDX-License-Identifier: Apache-2.0
"""The token ids that open a user's turn, found in chat templates of many kinds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from slim_core import SlimConfig, turn_opening
from slim_core.method import opening_of


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATES = {
    "chatml": (CHATML, "<|im_start|>user\n"),
    "chatml with a default system": (
        "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}" + CHATML,
        "<|im_end|>\n<|im_start|>user\n",
    ),
    "brackets": (
        "<s>{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
        "{% elif m['role'] == 'system' %}{{ raise_exception('no system') }}"
        "{% else %}{{ m['content'] }}</s>{% endif %}{% endfor %}",
        "[INST] ",
    ),
    "one token": (
        "{% for m in messages %}{% if m['role'] == 'user' %}<|user|>{% else %}<|other|>{% endif %}"
        "{{ m['content'] }}{% endfor %}",
        "<|user|>",
    ),
}
NOTHING = {
    "no mark": "{% for m in messages %}{{ m['content'] }}{% endfor %}",
    # The same before a user's turn and before an answer.
    "one mark for all": "{% for m in messages %}<|im_start|>{{ m['content'] }}{% endfor %}",
    "only a beginning": "<s>{% for m in messages %}{{ m['content'] }}{% endfor %}",
    "broken": "{{ messages[17]['content'] }}",
}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Letters and a few marks."""
    marks = ["<|im_start|>", "<|im_end|>", "<|user|>", "<|other|>", "[INST]", "[/INST]", "<s>", "</s>"]
    letters = [chr(c) for c in range(32, 127)] + ["\n", "“"]
    vocab = {text: number for number, text in enumerate(["?unknown", *marks, *letters])}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="?unknown"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=backend, additional_special_tokens=marks)


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_opening_is_what_stands_before_every_users_text(name, tokenizer):
    template, expected = TEMPLATES[name]
    tokenizer.chat_template = template
    opening = turn_opening(tokenizer)
    assert opening == encode(tokenizer, expected)
    SlimConfig(turn_opening=opening)
    conversation = [{"role": role, "content": "What is it?"} for role in ("user", "assistant") * 3]
    ids = tokenizer.apply_chat_template(conversation, tokenize=True, return_dict=False)
    places = [i for i in range(len(ids)) if ids[i : i + len(opening)] == opening]
    assert len(places) == 3


@pytest.mark.parametrize("name", NOTHING)
def test_a_template_that_marks_no_turn_has_no_opening(name, tokenizer):
    tokenizer.chat_template = NOTHING[name]
    assert turn_opening(tokenizer) is None


def test_a_tokenizer_without_a_template_has_no_opening(tokenizer):
    tokenizer.chat_template = None
    assert turn_opening(tokenizer) is None


def spelled(template: Callable) -> Callable:
    return lambda messages: [ord(c) for c in template(messages)]


def test_any_way_to_write_messages_will_do():
    def write(messages) -> str:
        return "".join(f"{'Q' if m['role'] == 'user' else 'A'}: {m['content']}\n" for m in messages)

    assert opening_of(spelled(write)) == [ord(c) for c in "Q: "]


def test_a_long_opening_is_known_by_its_last_ids():
    def write(messages) -> str:
        mark = "".join(chr(200 + i) for i in range(50))
        return "".join((mark if m["role"] == "user" else "~") + m["content"] for m in messages)

    assert opening_of(spelled(write)) == list(range(218, 250))


def test_a_template_that_knows_one_turn_only_is_enough():
    def write(messages) -> str:
        assert len(messages) == 2
        return f"<{messages[0]['content']}>{messages[1]['content']}"

    assert opening_of(spelled(write)) == [ord("<")]
