# SPDX-License-Identifier: Apache-2.0
"""A run that ends when its validation loss no longer falls, and keeps the adapter of the lowest."""

from __future__ import annotations

import io
import json

import pytest
import torch
from peft import PeftModel
from rich.console import Console
from transformers import AutoModelForCausalLM

from slim_core.training import TrainingError, train
from tests.training.conftest import settings


@pytest.mark.parametrize("method", ["lora", "slim"])
def test_the_best_adapter_is_kept_and_its_loss_is_that_of_the_record(method, base, pairs, tmp_path):
    # A rate at which the loss soon rises.
    asked = {"learning_rate": 3.0, "max_steps": 30, "validate_every": 2, "early_stopping": 2, "validation_share": 0.3}
    screen = io.StringIO()
    train(settings(base, pairs, tmp_path / "out", methods=[method], **asked), Console(file=screen, width=200))
    record = json.loads((tmp_path / "out" / "training.json").read_text("utf-8"))
    curve = {row["step"]: row["eval_loss"] for row in record["curves"] if "eval_loss" in row and row["step"]}
    best = min(curve, key=curve.__getitem__)
    assert record["steps"] < 30, "it ended early"
    assert sum(step > best for step in curve if step <= record["steps"]) >= 2
    assert f"The adapter is that of step {best}, whose validation loss of {curve[best]:.4f}" in screen.getvalue()
    assert record["validation_loss_after"] == pytest.approx(curve[best], rel=1e-5)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "out").eval()
    assert torch.isfinite(model(input_ids=torch.arange(5, 29).view(2, 12)).logits).all()


def test_without_validation_there_is_nothing_to_stop_by(base, pairs, tmp_path):
    with pytest.raises(TrainingError, match="--early-stopping needs validation"):
        train(settings(base, pairs, tmp_path / "out", early_stopping=1, validation_share=0.0))
    assert not (tmp_path / "out").exists()
