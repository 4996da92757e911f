# SPDX-License-Identifier: Apache-2.0
"""What a device must not change: tokens, rows of a batch, contexts read in pieces, gradients of a training step."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model

from slim_core import SlimConfig
from slim_core.inference import Message, Passage, Row, Sampling, cache, load_engine
from tests.conftest import every_device
from tests.inference.conftest import LONGER, QUESTION, SHORT, folders, ids, last, rows, tiny_base


__all__ = ["folders"]
NAMES = ("base", "lora", "slim")
TEXT = "The sea is blue and the sun is red, they say. What is the capital of Peru?"


def loaded(folders, device, dtype):
    return load_engine(folders.base, lora=folders.lora, slim=folders.slim, device=device, dtype=dtype)


@every_device
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_tokens_are_those_of_the_cpu(folders, device, temperature):
    sampling = Sampling(temperature=temperature, max_new_tokens=12, seed=5)
    asked = rows(QUESTION, LONGER, SHORT, routing=True)
    actual, expected = (last(loaded(folders, where, torch.float32), asked, sampling) for where in (device, "cpu"))
    assert ids(actual) == ids(expected)
    for index, record in expected.routing.items():
        torch.testing.assert_close(actual.routing[index].weights, record.weights, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(actual.routing[index].distance, record.distance, atol=1e-3, rtol=1e-3)


@every_device
def test_rows_in_bfloat16_are_near_those_alone(folders, device):
    engine = loaded(folders, device, torch.bfloat16)
    assert engine.info.dtype == "bfloat16"
    passages = [Passage(QUESTION, "Lima"), Passage(TEXT, " It is Lima."), Passage("The sea is", " blue")]
    together = engine.score(passages, NAMES)
    for passage, in_batch in zip(passages, together, strict=True):
        alone = engine.score([passage], NAMES)[0]
        assert float((in_batch.log_probs - alone.log_probs).abs().mean()) < 0.3
        # In full precision they are the same, so what is left is rounding.
        assert float((in_batch.log_probs - alone.log_probs).abs().max()) < 1.5


@every_device
def test_contexts_of_a_text_that_is_read_in_pieces(folders, device, monkeypatch):
    engine = loaded(folders, device, torch.float32)
    asked = [Row(name, (), text=TEXT, log_probs=0, prompt_log_probs=True) for name in NAMES]
    asked.append(Row("slim", (Message("user", TEXT),), log_probs=0, prompt_log_probs=True))
    whole = last(engine, asked, Sampling(max_new_tokens=2))
    monkeypatch.setattr(cache, "PIECE", 5)
    pieces = last(engine, asked, Sampling(max_new_tokens=2))
    for one, other in zip(whole.rows, pieces.rows, strict=True):
        values = [[token.log_prob for token in row.prompt_log_probs[1:] + row.log_probs] for row in (one, other)]
        assert len(values[0]) > 15 and values[0] == pytest.approx(values[1], abs=2e-3)


@every_device
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
def test_a_training_step_with_and_without_checkpointing(device):
    runs = []
    for checkpointing in (False, True):
        torch.manual_seed(3)
        config = SlimConfig(r=2, num_experts=3, num_clusters=4, target_modules="all-linear", init_weights=False)
        model = get_peft_model(tiny_base(), config).to(device).train()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model.enable_input_require_grads()
        text = torch.randint(5, 90, (3, 12), generator=torch.Generator().manual_seed(1)).to(device)
        model(input_ids=text, labels=text).loss.backward()
        gradients = {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}
        centres = {name: b.cpu().clone() for name, b in model.named_buffers() if "slim" in name}
        runs.append(gradients | centres)
    assert runs[0].keys() == runs[1].keys() and len(runs[0]) > 50
    torch.testing.assert_close(runs[1], runs[0], atol=1e-4, rtol=1e-3)
