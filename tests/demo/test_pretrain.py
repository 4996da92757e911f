# SPDX-License-Identifier: Apache-2.0
"""The base's training: what it sees, what it minimises, and that it can go on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from slim_core.demo.conversations import conversations
from slim_core.demo.muon import Muon
from slim_core.demo.pretrain import DRAW, Pretraining, batches, collate, encode, new_base
from slim_core.demo.recipe import Phase


CPU = torch.device("cpu")


class Enough(Exception):
    """Ends a training from inside."""


@pytest.fixture
def start(tokenizer, recipe, tmp_path):
    """Starts a training, or goes on with it."""

    def start(training=recipe, file=tmp_path / "state.safetensors", model=None) -> Pretraining:
        return Pretraining(tokenizer, model or new_base(tokenizer, recipe), training, file, CPU)

    return start


def test_encodes_as_the_chat_template_does(tokenizer):
    several = conversations(0, 40, Phase(1, {"sums": 1, "talk": 3}, turns=(0, 1, 1)))
    for conversation, encoded in zip(several, encode(tokenizer, several, 512), strict=True):
        chat = []
        for example, (begin, end) in zip(conversation, encoded.answers, strict=True):
            chat += [{"role": "user", "content": example.prompt}]
            assert encoded.ids[:begin] == tokenizer.apply_chat_template(
                chat, add_generation_prompt=True, return_dict=False
            )
            chat += [{"role": "assistant", "content": example.answer}]
            assert encoded.ids[:end] == tokenizer.apply_chat_template(chat, return_dict=False)
        assert end == len(encoded.ids)


def test_turns_beyond_the_context_are_left_out(tokenizer):
    [conversation] = conversations(0, 1, Phase(1, {"facts": 1}, turns=(0, 0, 1)))
    [whole] = encode(tokenizer, [conversation], 512)
    [cut] = encode(tokenizer, [conversation], len(whole.ids) - 1)
    assert cut.answers == whole.answers[:2]
    assert cut.ids == whole.ids[: whole.answers[1][1]]


def test_answers_are_predicted_and_a_share_of_the_questions(tokenizer):
    encoded = encode(tokenizer, conversations(0, 200, Phase(1, {"sums": 1}, turns=(1, 1))), 512)
    ids, predicted = collate(encoded, tokenizer.pad_token_id, 0.25, torch.Generator().manual_seed(0))
    of_prompts = []
    for row, row_predicted, conversation in zip(ids, predicted, encoded, strict=True):
        assert row[: len(conversation.ids)].tolist() == conversation.ids
        asked = torch.ones(len(conversation.ids) - 1, dtype=torch.bool)
        for begin, end in conversation.answers:
            assert row_predicted[begin - 1 : end - 1].all()
            asked[begin - 1 : end - 1] = False
        assert not row_predicted[len(conversation.ids) - 1 :].any()
        of_prompts.append(row_predicted[: len(conversation.ids) - 1][asked].float())
    assert torch.cat(of_prompts).mean() == pytest.approx(0.25, abs=0.02)


def test_batches_go_on_where_they_were(tokenizer, recipe):
    long = replace(recipe, batch=2, phases=(Phase(DRAW + 2, {"facts": 1}), Phase(3, {"sums": 1})))
    straight = list(batches(tokenizer, long, 512))
    assert len(straight) == long.steps == DRAW + 5
    for start in (1, DRAW + 1, DRAW + 2, DRAW + 4):
        assert list(batches(tokenizer, long, 512, start)) == straight[start:]
    assert len({tuple(conversation.ids) for batch in straight for conversation in batch}) > DRAW


def test_every_phase_has_its_tasks_and_the_rates_fall_where_it_says(tokenizer, recipe, start):
    phases = (Phase(3, {}), Phase(5, {}, 4), Phase(4, {}, 2))
    schedules = start(replace(recipe, warmup=2, phases=phases)).schedules
    factors = [schedules[0].lr_lambdas[0](step) for step in range(12)]
    assert factors == [0.5, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0.5, 1, 1, 0.5]
    facts, sums = (list(batches(tokenizer, recipe, 512))[i] for i in (0, 2))
    assert all("The answer is" not in tokenizer.decode(conversation.ids) for conversation in facts)
    assert all("The answer is" in tokenizer.decode(conversation.ids) for conversation in sums)


def test_loss_is_the_mean_over_predicted_tokens(tokenizer, recipe, start):
    one_step = replace(recipe, phases=(replace(recipe.phases[0], steps=1, prompt_share=1.0),))
    pretraining = start(one_step)
    [batch] = batches(tokenizer, one_step, 512)
    with torch.no_grad():
        losses = [
            torch.nn.functional.cross_entropy(
                pretraining.model(input_ids=torch.tensor([e.ids])).logits[0, :-1].double(),
                torch.tensor(e.ids[1:]),
                reduction="none",
            )
            for e in batch
        ]
    done = []
    pretraining.run(done.append)
    # The hardware may multiply in bfloat16.
    assert [step.loss for step in done] == pytest.approx([torch.cat(losses).mean().item()], rel=1e-2)


def test_an_interrupted_training_ends_like_a_straight_one(recipe, start, tmp_path, monkeypatch):
    straight = start(file=tmp_path / "straight").run(lambda done: None)

    monkeypatch.setattr("slim_core.demo.pretrain.SAVE_SECONDS", 0.0)
    first = start()
    seen = []

    def cut(done):
        seen.append(done.step)
        if done.step == 3:
            raise Enough

    with pytest.raises(Enough):
        first.run(cut)
    second = start()
    assert second.step == 2  # the third step was reported, but not yet saved
    resumed = second.run(lambda done: seen.append(done.step))
    assert seen == [1, 2, 3, 3, 4]
    for (name, one), other in zip(straight.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_another_recipe_or_other_weights_begin_anew(tokenizer, recipe, start):
    start().run(lambda done: None)
    assert start().step == recipe.steps
    assert start(replace(recipe, seed=1)).step == 0
    assert start(model=new_base(tokenizer, replace(recipe, seed=1))).step == 0


def test_muon_does_what_pytorchs_does():
    torch.manual_seed(0)
    mine, theirs = ([torch.nn.Parameter(torch.ones(shape)) for shape in ((6, 4), (4, 6))] for _ in range(2))
    rates = {"lr": 0.01, "weight_decay": 0.1}
    optimisers = [Muon(mine, **rates), torch.optim.Muon(theirs, **rates, adjust_lr_fn="match_rms_adamw")]
    for _ in range(3):
        for one, other in zip(mine, theirs, strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        for optimiser in optimisers:
            optimiser.step()
    for one, other in zip(mine, theirs, strict=True):
        # Theirs multiplies in bfloat16.
        assert torch.allclose(one, other, atol=2e-3)
        assert (one - 1).abs().max() > 0.01
