# SPDX-License-Identifier: Apache-2.0
"""transformers' Trainer trains a SLIM adapter like any other: nothing to call, padding left out, checkpoints whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor
from transformers import Trainer, TrainingArguments

from slim_core import SlimConfig, extra_losses
from tests.conftest import build


STEPS = 5
ROWS = 4
generator = torch.Generator().manual_seed(2)
# Rows of different lengths; few different tokens, so that there is something to learn in five steps.
TEXTS = [
    {"ids": torch.randint(3, 9, (int(length),), generator=generator)}
    for length in torch.randint(4, 15, (STEPS * ROWS,), generator=generator)
]


def collate(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Pad on the right."""
    ids = torch.nn.utils.rnn.pad_sequence([row["ids"] for row in rows], batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row["ids"]) for row in rows], batch_first=True)
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def adapt(**changes) -> PeftModel:
    start = {"r": 4, "num_experts": 3, "num_identity": 1, "num_clusters": 4, "yield_mode": "calibrated"}
    return get_peft_model(build("llama"), SlimConfig(**(start | changes)))


def train(model: PeftModel, folder: Path, resume: Path | None = None, **changes) -> list[float]:
    """The losses of the steps, by default `STEPS`; `resume` is the checkpoint to go on from."""
    settings = {
        "per_device_train_batch_size": ROWS,
        "learning_rate": 0.02,
        "max_steps": STEPS,
        "logging_steps": 1,
        "save_steps": STEPS,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "remove_unused_columns": False,
        "lr_scheduler_type": "constant",
    }
    arguments = TrainingArguments(output_dir=str(folder), **(settings | changes))
    trainer = Trainer(model=model, args=arguments, train_dataset=TEXTS, data_collator=collate)
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def counted(model: PeftModel) -> set[int]:
    return {int(tensor.sum()) for name, tensor in model.state_dict().items() if "slim_count" in name}


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_loss_falls_and_every_valid_token_is_counted_once(checkpointing, accumulate, tmp_path):
    model = adapt()
    losses = train(
        model,
        tmp_path,
        activation_checkpointing=checkpointing,
        gradient_accumulation_steps=accumulate,
        per_device_train_batch_size=ROWS // accumulate,
        save_strategy="no",
    )
    assert len(losses) == STEPS
    # The head is frozen and random: untrained, the losses of different rows differ by a hundredth.
    assert losses[-1] < losses[0] - 0.1
    # The steps are one epoch.
    assert counted(model) == {sum(len(text["ids"]) for text in TEXTS)}


def test_a_checkpoint_of_the_trainer_reloads_bit_for_bit(tmp_path, ids):
    model = adapt()
    train(model, tmp_path)
    expected = model.eval()(input_ids=ids).logits
    loaded = PeftModel.from_pretrained(build("llama"), tmp_path / f"checkpoint-{STEPS}")
    ours = {name: tensor for name, tensor in model.state_dict().items() if "slim_" in name}
    theirs = loaded.state_dict()
    assert ours
    for name, tensor in ours.items():
        assert torch.equal(theirs[name], tensor), name
    assert torch.equal(loaded.eval()(input_ids=ids).logits, expected)
    assert not torch.equal(build("llama")(input_ids=ids).logits, expected)


def test_training_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(tmp_path):
    whole = adapt(merge="none")
    losses = train(whole, tmp_path / "whole")
    train(adapt(merge="none"), tmp_path / "halves", max_steps=3, save_steps=3)
    halves = adapt(merge="none")
    again = train(halves, tmp_path / "halves", resume=tmp_path / "halves" / "checkpoint-3")
    # The log that the checkpoint holds comes back too.
    assert again == pytest.approx(losses, abs=1e-4)
    ours, theirs = whole.state_dict(), halves.state_dict()
    for name in ours:
        torch.testing.assert_close(theirs[name], ours[name], atol=1e-6, rtol=1e-5)


def step_gradients(model: PeftModel, folder: Path, batches: list[list[dict[str, Tensor]]], tells: bool) -> dict:
    """Gradients of one optimiser step, by name, in as many forwards as there are batches.

    Args:
        model: the adapted model.
        folder: the Trainer's.
        batches: the rows of each forward.
        tells: whether the Trainer tells the model the number of labels; otherwise it divides the loss itself.
    """
    arguments = TrainingArguments(output_dir=str(folder), report_to=[], use_cpu=True)
    trainer = Trainer(model=model, args=arguments, data_collator=collate)
    trainer.model_accepts_loss_kwargs = tells
    samples, items = trainer.get_batch_samples(iter([collate(rows) for rows in batches]), len(batches), "cpu")
    assert (items is not None) == tells
    trainer.current_gradient_accumulation_steps = len(samples)
    model.zero_grad()
    for batch in samples:
        trainer.training_step(model, batch, items)
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("tells", [True, False])
def test_a_step_of_several_forwards_has_the_extra_losses_once(tells, tmp_path):
    # Clusters that stand still and no masks: then forwards do not depend on those before them. Where the Trainer
    # divides by the number of forwards, it weights their labels differently unless each has as many.
    still = {"cluster_momentum": 1 - 1e-9, "yield_strength": 0.0, "merge": "none", "init_weights": False}
    rows = TEXTS[:4] if tells else [{"ids": torch.arange(i, i + 6) % 6 + 3} for i in range(4)]
    parts = [rows[:1], rows[1:]] if tells else [rows[:2], rows[2:]]

    def start(**losses) -> PeftModel:
        torch.manual_seed(0)
        model = adapt(**still, **losses).train()
        model(**collate(rows))
        model(**collate(rows))
        return model

    task = start()
    whole, cut = (step_gradients(task, tmp_path, batches, tells) for batches in ([rows], parts))
    torch.testing.assert_close(cut, whole, atol=1e-6, rtol=1e-4)
    for losses in ({"l1_coefficient": 0.5}, {"balance_coefficient": 2.0}):
        model = start(**losses)
        labels = [sum(len(row["ids"]) - 1 for row in part) for part in parts]
        for part, number in zip(parts, labels, strict=True):
            # By hand: without labels nothing is added.
            batch = collate(part)
            del batch["labels"]
            model(**batch)
            share = number / sum(labels)
            sum(share * loss for loss in extra_losses(model).values()).backward()
        by_hand = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        assert any(gradient.abs().max() > 1e-3 for gradient in by_hand.values())
        actual = step_gradients(model, tmp_path, parts, tells)
        expected = {name: gradient + by_hand.get(name, 0) for name, gradient in cut.items()}
        torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-4)
