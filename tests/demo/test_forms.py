# SPDX-License-Identifier: Apache-2.0
"""Questions in other clothes: still the same questions. And the share of a prompt that goes past LoRA."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model

import slim_core
from slim_core import SlimConfig
from slim_core.demo.forms import FORMS, GENERAL_FORMS, TRAINED_FORMS, asked_in_form
from slim_core.demo.identity import identity_shares, measure_identity
from slim_core.demo.measure import DOWNSTREAM_TASKS, GENERAL_TASKS, TASKS, asked, questions
from slim_core.demo.pretrain import new_base
from slim_core.demo.stored import write_json


FRAMES = ("Please choose the correct answer", "Answer format:", "Please answer the following question")


def last(chat):
    assert [message["role"] for message in chat] == ["user", "assistant"] * (len(chat) // 2) + ["user"]
    return chat[-1]["content"]


@pytest.mark.parametrize("form", TRAINED_FORMS)
def test_a_form_keeps_the_options(form):
    examples, chats = asked_in_form("downstream", form, "test", 20)
    assert len(examples) == len(chats) == 20 * len(DOWNSTREAM_TASKS)
    assert asked_in_form("downstream", form, "test", 20) == (examples, chats)
    framed = form not in ("paraphrase of the frame", "no frame")
    for example, chat in zip(examples, chats, strict=True):
        prompt = last(chat)
        assert ("Answer3:" in prompt) == ("Answer3:" in example.prompt)
        if form == "typos":
            assert sorted(prompt) == sorted(example.prompt)
        elif framed:
            assert example.prompt in prompt
        else:
            assert not any(frame in prompt for frame in FRAMES)
    prompts = list(map(last, chats))
    same = sum(prompt == example.prompt for prompt, example in zip(prompts, examples, strict=True)) / len(prompts)
    assert same == 1.0 if form in ("as trained", "third turn, after two general ones") else same < 0.2
    assert {len(chat) for chat in chats} == ({5} if form.startswith("third") else {1})


def test_general_questions_stay_what_they_are():
    for form in GENERAL_FORMS:
        examples, chats = asked_in_form("general", form, "test", 10)
        assert {example.task for example in examples} == set(GENERAL_TASKS)
        assert list(map(last, chats)) == [example.prompt for example in examples]
    assert all("the correct answer is" in chat[1]["content"] for chat in chats)
    assert set(FORMS) == {"general", "downstream"}


@pytest.fixture(scope="module")
def slim(tokenizer, recipe):
    torch.manual_seed(0)
    config = SlimConfig(
        r=2, num_experts=2, num_identity=2, num_clusters=2, target_modules=["gate_proj", "up_proj"], init_weights=False
    )
    return get_peft_model(new_base(tokenizer, recipe), config).eval()


def test_a_share_is_the_mean_over_the_last_question(slim, tokenizer):
    chats = asked_in_form("general", "second turn, after a trained one", "test", 2)[1]
    shares = identity_shares(slim, tokenizer, chats)
    assert shares.shape == (len(chats), 1)
    for chat, share in zip(chats, shares, strict=True):
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        begin = max(i for i, token in enumerate(tokenizer.convert_ids_to_tokens(ids)) if token == "<|user|>") + 1
        with slim_core.trace_routing(slim) as trace, torch.no_grad():
            slim(input_ids=torch.tensor([ids]))
        assert trace.row(0).identity[:, begin:].mean().item() == pytest.approx(share.item(), abs=1e-5)


def test_every_task_has_a_share(slim, tokenizer):
    shares = measure_identity(slim, tokenizer, "validation", 3)
    assert set(shares["tasks"]) == set(TASKS) and 0 <= shares["auc"] <= 1
    assert len(shares["blocks"]) == 1
    assert shares["blocks"][0]["tasks"] == pytest.approx(shares["tasks"])
    chats = [asked(example) for example in questions("sums", "validation", 3)]
    assert identity_shares(slim, tokenizer, chats).mean().item() == pytest.approx(shares["tasks"]["sums"])


def test_stored_numbers_are_short_and_in_their_lines(tmp_path):
    path = tmp_path / "file.json"
    write_json(path, {"a": {"b": [1 / 3, 2], "c": {}}, "d": [{"p": 1.23456789e-20}], "e": None})
    assert path.read_text() == (
        '{\n "a": {\n  "b": [0.33333, 2],\n  "c": {}\n },\n "d": [\n  {"p": 1.2346e-20}\n ],\n "e": null\n}\n'
    )
