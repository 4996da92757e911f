# SPDX-License-Identifier: Apache-2.0
"""The loss is on the answers and on nothing else, whatever the template; the tokens are those of a chat."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console

from slim_core.training import DataError
from slim_core.training.collator import Collator
from slim_core.training.data import Conversation, to_conversations
from slim_core.training.encoding import IGNORED, EncodedExample, ExampleEncoder
from slim_core.training.examples import split
from slim_core.training.files import Record
from slim_core.training.report import answer_texts, print_preview
from slim_core.training.settings import Columns
from tests.training.conftest import CHATML, PAIRS, small_tokenizer


# Adds a space before each answer, strips texts, and has the end token close an answer, as Llama 2's.
BRACKETS = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + message['content'] | trim + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] | trim + ' ' + eos_token }}{% endif %}"
    "{% endfor %}"
)
# Has thoughts before the last answer alone, and takes them out of what is said, as Qwen3's.
THOUGHTS = (
    "{% for message in messages %}"
    "{% set content = message['content'] %}"
    "{% if message['role'] == 'assistant' %}"
    "{% if '</think>' in content %}"
    "{% set thought = content.split('</think>')[0].split('<think>')[-1].strip() %}"
    "{% set content = content.split('</think>')[-1].strip() %}{% else %}{% set thought = '' %}{% endif %}"
    "{{ '<|im_start|>assistant\\n' }}"
    "{% if loop.last %}{{ '<think>\\n' + thought + '\\n</think>\\n\\n' }}{% endif %}{{ content + '<|im_end|>\\n' }}"
    "{% else %}{{ '<|im_start|>' + message['role'] + '\\n' + content + '<|im_end|>\\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TALK = ["What is seven?", "After six.", "And “the sea”?", "Wide\n\nand blue.", "x < y?", "After six."]
REFUSES = "{{ raise_exception('Conversation roles must be known') }}"


def conversation(*texts: str, system: str | None = None) -> Conversation:
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return Conversation(([{"role": "system", "content": system}] if system else []) + messages, "a.jsonl, line 1")


def learned(template: str | None, talk: Conversation) -> tuple[list[str], str]:
    """The texts that the loss is on, and the whole text."""
    tokenizer = small_tokenizer(template)
    example = ExampleEncoder(tokenizer).encode(talk)
    assert all(label in (IGNORED, token) for token, label in zip(example.input_ids, example.labels, strict=True))
    return answer_texts(example, tokenizer), tokenizer.decode(example.input_ids)


# template, what closes an answer
TEMPLATES = {"fallback": (None, "</s>"), "chatml": (CHATML, "<|im_end|>"), "thoughts": (THOUGHTS, "<|im_end|>")}


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("turns", [1, 2, 3])
def test_the_loss_is_exactly_on_the_answers_and_their_end(name, turns):
    template, end = TEMPLATES[name]
    texts = TALK[: 2 * turns]
    answers, whole = learned(template, conversation(*texts))
    assert answers == [answer + end for answer in texts[1::2]]
    for text in texts:
        assert text in whole


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("zeros", [{1}, {3}, {1, 5}, {3, 5}])
def test_there_is_no_loss_on_answers_of_weight_0(name, zeros):
    template, end = TEMPLATES[name]
    answers, whole = learned(template, conversation(*TALK)._replace(unlearned=frozenset(zeros)))
    assert answers == [TALK[i] + end for i in (1, 3, 5) if i not in zeros]
    for text in TALK:
        assert text in whole


@pytest.mark.parametrize("weights", [(0, 1), (0.0, 1.0), (False, True), (0, None), (None, 0)])
def test_weights_are_read_and_do_not_reach_the_template(weights):
    messages = conversation(*TALK[:4]).messages
    weighted = [m | ({"weight": weights[i // 2]} if i % 2 else {"weight": None}) for i, m in enumerate(messages)]
    (talk,) = to_conversations([Record({"messages": weighted}, "a.jsonl, line 1")], Columns())
    assert talk.messages == messages and talk.place == "a.jsonl, line 1"
    assert talk.unlearned == {1 + 2 * i for i in (0, 1) if weights[i] == 0}


@pytest.mark.parametrize("turns", [1, 3])
def test_a_template_that_strips_and_adds_a_space_is_followed(turns):
    texts = [f" {text} \n" for text in TALK[: 2 * turns]]
    answers, whole = learned(BRACKETS, conversation(*texts))
    # A token may hold the space before the answer too: the model has to write it.
    assert [answer.strip() for answer in answers] == [f"{answer} </s>" for answer in TALK[1 : 2 * turns : 2]]
    assert whole.startswith("<s>[INST] What is seven? [/INST] After six. </s>")


def test_a_thought_is_part_of_the_answer():
    answers, whole = learned(THOUGHTS, conversation("What is seven?", "<think>\nsix, then\n</think>\n\nAfter six."))
    assert answers == ["<think>\nsix, then\n</think>\n\nAfter six.<|im_end|>"]
    assert whole.count("<think>") == 1


def test_a_template_that_rewrites_earlier_answers_is_refused():
    sentence = "line 1: the model's chat template drops or changes the answer of message 2 when other messages follow"
    with pytest.raises(DataError, match=sentence):
        learned(THOUGHTS, conversation("a", "<think>\nb\n</think>\n\nc", "d", "e"))


def test_what_the_template_raises_is_a_sentence():
    with pytest.raises(
        DataError, match=r"line 1: the model's chat template cannot write any .* \(Conversation roles must be kn"
    ):
        learned(REFUSES, conversation("a", "b"))


def test_instruction_input_output_ends_in_the_same_text_as_prompt_and_completion():
    rows = [
        {"instruction": "Say it.", "input": "seven", "output": "Seven."},
        {"prompt": "Say it.\n\nseven", "completion": "Seven."},
    ]
    for template, end in TEMPLATES.values():
        results = []
        for row in rows:
            (made,) = to_conversations([Record(row, "here")], Columns())
            results.append(learned(template, made)[:2])
        assert results[0] == results[1]
        assert results[0][0][0].endswith("Seven." + end)


def test_a_system_message_is_read_and_not_learned():
    answers, whole = learned(None, conversation("q", "a", system="Be brief."))
    assert whole == "Be brief.\n\n### Instruction:\nq\n\n### Response:\na</s>\n\n"
    assert answers == ["a</s>"]


@pytest.mark.parametrize("template", [None, CHATML])
def test_the_tokens_begin_with_those_of_the_prompt_at_inference(template):
    tokenizer = small_tokenizer(template)
    encoder = ExampleEncoder(tokenizer)
    for question, answer in PAIRS:
        talk = conversation(question, answer)
        example = encoder.encode(talk)
        prompt = tokenizer.apply_chat_template(talk.messages[:1], add_generation_prompt=True)["input_ids"]
        assert example.input_ids[: len(prompt)] == prompt
        assert set(example.labels[: len(prompt)]) == {IGNORED} and example.labels[len(prompt)] != IGNORED


def test_an_answer_that_occurs_in_the_question_is_learned_once():
    answers, _ = learned(CHATML, conversation("seven", "seven", "seven", "seven"))
    assert answers == ["seven<|im_end|>"] * 2


def test_templates_that_close_no_answer_are_noticed():
    assert (
        ExampleEncoder(small_tokenizer()).closes_answers() and ExampleEncoder(small_tokenizer(CHATML)).closes_answers()
    )
    assert not ExampleEncoder(
        small_tokenizer("{% for m in messages %}{{ m['content'] + '\\n' }}{% endfor %}")
    ).closes_answers()


def test_the_real_tokenizer_learns_answers_and_begins_with_its_begin_token(stories_tokenizer):
    encoder = ExampleEncoder(stories_tokenizer)
    for question, answer in [("What is it?", "A cat.\nOr a dog."), ("Où?", "Là, “ici” 日本.")]:
        example = encoder.encode(conversation(question, answer))
        assert example.input_ids[0] == stories_tokenizer.bos_token_id
        assert example.input_ids.count(stories_tokenizer.bos_token_id) == 1
        assert answer_texts(example, stories_tokenizer) == [answer + "</s>"]


def test_the_preview_shows_what_the_model_sees_and_what_it_learns():
    tokenizer = small_tokenizer(CHATML)
    example = ExampleEncoder(tokenizer).encode(conversation("What is [red]seven[/red]?", "After six."))
    out = io.StringIO()
    print_preview(Console(file=out, width=200), example, tokenizer)
    shown = out.getvalue()
    assert "a.jsonl, line 1" in shown and "[red]seven[/red]?<|im_end|>" in shown
    assert shown.count("After six.<|im_end|>") == 2


# -- batches and split -------------------------------------------------------------------------------------------


def test_batches_are_padded_on_the_right_to_a_multiple_of_eight():
    examples = [EncodedExample([5] * n, [IGNORED] + [5] * (n - 1), "") for n in (3, 9)]
    batch = Collator(pad_token_id=7)(examples)
    assert {name: tuple(tensor.shape) for name, tensor in batch.items()} == dict.fromkeys(batch, (2, 16))
    assert batch["attention_mask"].sum(1).tolist() == [3, 9]
    assert torch.equal(batch["input_ids"] == 7, batch["attention_mask"] == 0)
    assert (batch["labels"] != IGNORED).sum(1).tolist() == [2, 8]
    assert Collator(0)(examples[:1])["labels"].shape == (1, 8)


@pytest.mark.parametrize("share,count", [(0.0, 0), (0.001, 1), (0.25, 5), (0.99, 19)])
def test_a_split_keeps_every_example_once_and_in_order(share, count):
    examples = [EncodedExample([i], [i], str(i)) for i in range(20)]
    train, validation = split(examples, share, seed=1)
    assert len(validation) == count
    assert sorted([*train, *validation]) == examples
    assert train == sorted(train) and validation == sorted(validation)
    assert split(examples, share, seed=1) == (train, validation)
    if count == 5:
        assert split(examples, share, seed=2) != (train, validation)
