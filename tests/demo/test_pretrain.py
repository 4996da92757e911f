# SPDX-License-Identifier: Apache-2.0
"""The base's training: what it sees, what it minimises, and that it can go on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from slim_core.demo.pretrain import DRAW, Phase, Pretraining, batches, collate, encode
from slim_core.demo.world import general_examples


CPU = torch.device("cpu")


class Enough(Exception):
    """Ends a training from inside."""


def test_encodes_as_the_chat_template_does(tokenizer):
    [example] = general_examples("validation", 0, 1, "facts")
    [encoded] = encode(tokenizer, [example])
    user = {"role": "user", "content": example.prompt}
    chat = [user, {"role": "assistant", "content": example.answer}]
    assert encoded.ids == tokenizer.apply_chat_template(chat, return_dict=False)
    assert encoded.ids[: encoded.prompt] == tokenizer.apply_chat_template(
        [user], add_generation_prompt=True, return_dict=False
    )


def test_answers_are_predicted_and_a_share_of_the_questions(tokenizer):
    examples = general_examples("validation", 0, 200, "sums")
    encoded = encode(tokenizer, examples)
    ids, wanted = collate(encoded, tokenizer.pad_token_id, 0.25, torch.Generator().manual_seed(0))
    of_prompts = []
    for row, row_wanted, one in zip(ids, wanted, encoded, strict=True):
        assert row[: len(one.ids)].tolist() == one.ids
        assert row_wanted[one.prompt - 1 : len(one.ids) - 1].all()
        assert not row_wanted[len(one.ids) - 1 :].any()
        of_prompts.append(row_wanted[: one.prompt - 1].float().mean())
    assert torch.stack(of_prompts).mean() == pytest.approx(0.25, abs=0.02)


def test_batches_go_on_where_they_were(tokenizer, recipe):
    long = replace(recipe, batch=2, phases=(Phase(DRAW + 2, {"facts": 1}), Phase(3, {"sums": 1})))
    straight = list(batches(tokenizer, long))
    assert len(straight) == long.steps == DRAW + 5
    for start in (1, DRAW + 1, DRAW + 2, DRAW + 4):
        assert list(batches(tokenizer, long, start)) == straight[start:]
    assert len({tuple(one.ids) for batch in straight for one in batch}) > DRAW


def test_every_phase_has_its_tasks_and_the_rates_fall_where_it_says(tokenizer, recipe, tmp_path):
    phases = (Phase(3, {}), Phase(5, {}, 4), Phase(4, {}, 2))
    pretraining = Pretraining(tokenizer, replace(recipe, warmup=2, phases=phases), tmp_path, CPU)
    factors = [pretraining._factor(step) for step in range(12)]
    assert factors == [0.5, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0.5, 1, 1, 0.5]
    facts, sums = (list(batches(tokenizer, recipe))[i] for i in (0, 2))
    assert all("The answer is" not in tokenizer.decode(one.ids) for one in facts)
    assert all("The answer is" in tokenizer.decode(one.ids) for one in sums)


def test_loss_is_the_mean_over_predicted_tokens(tokenizer, recipe, tmp_path):
    pretraining = Pretraining(tokenizer, replace(recipe, prompt_share=1.0), tmp_path, CPU)
    batch = next(batches(tokenizer, recipe))
    with torch.no_grad():
        losses = [
            torch.nn.functional.cross_entropy(
                pretraining.model(input_ids=torch.tensor([e.ids])).logits[0, :-1].double(),
                torch.tensor(e.ids[1:]),
                reduction="none",
            )
            for e in batch
        ]
    # The hardware may multiply in bfloat16.
    assert pretraining._train(batch) == pytest.approx(torch.cat(losses).mean().item(), rel=1e-2)


def test_an_interrupted_training_ends_like_a_straight_one(tokenizer, recipe, tmp_path, monkeypatch):
    straight = Pretraining(tokenizer, recipe, tmp_path / "straight", CPU).run(lambda done: None)

    monkeypatch.setattr("slim_core.demo.pretrain.SAVE_SECONDS", 0.0)
    first = Pretraining(tokenizer, recipe, tmp_path / "cut", CPU)
    seen = []

    def cut(done):
        seen.append(done.step)
        if done.step == 3:
            raise Enough

    with pytest.raises(Enough):
        first.run(cut)
    second = Pretraining(tokenizer, recipe, tmp_path / "cut", CPU)
    assert second.step == 2  # the third step was reported, but not yet saved
    resumed = second.run(lambda done: seen.append(done.step))
    assert seen == [1, 2, 3, 3, 4]
    for (name, one), other in zip(straight.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_another_recipe_begins_anew(tokenizer, recipe, tmp_path):
    Pretraining(tokenizer, recipe, tmp_path, CPU).run(lambda done: None)
    assert Pretraining(tokenizer, recipe, tmp_path, CPU).step == recipe.steps
    assert Pretraining(tokenizer, replace(recipe, seed=1), tmp_path, CPU).step == 0
