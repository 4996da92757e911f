# SPDX-License-Identifier: Apache-2.0
"""transformers' Trainer trains a SLIM adapter like any other: nothing to call, padding left out, checkpoints whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor
from transformers import Trainer, TrainingArguments

from slim_core import SlimConfig
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
