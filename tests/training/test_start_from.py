# SPDX-License-Identifier: Apache-2.0
"""A training that goes on from a finished adapter, on other data."""

import json

import pytest
import torch
from peft import get_peft_model_state_dict
from safetensors.torch import load_file

from slim_core.training import TrainingError, train
from slim_core.training.base import add_adapter, load_base
from tests.training.conftest import settings


@pytest.fixture(scope="module")
def first(base, tmp_path_factory):
    """Adapters of two methods."""
    folder = tmp_path_factory.mktemp("first")
    data = folder / "data.jsonl"
    data.write_text(
        "".join(json.dumps({"prompt": f"Say {i}.", "completion": f"It is {i}."}) + "\n" for i in range(20))
    )
    train(settings(base, data, folder / "out", methods=["slim", "lora"]))
    return folder


@pytest.mark.parametrize("method", ["slim", "lora"])
def test_it_begins_with_what_was_trained(base, first, tmp_path, method):
    before = first / "out" / method
    # The adapter's own configuration counts: these experts would be of another rank.
    asked = settings(
        base, first / "data.jsonl", tmp_path / "on", methods=[method], start_from=str(before), r=4, max_steps=2
    )
    model = add_adapter(load_base(asked), method, asked)
    saved = load_file(before / "adapter_model.safetensors")
    started = get_peft_model_state_dict(model)
    assert saved.keys() == started.keys() and all(torch.equal(saved[name], started[name]) for name in saved)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable and all("lora" in name or "slim" in name for name in trainable)
    outcome = train(asked)
    assert outcome.records[0].status == "finished" and outcome.records[0].peak_memory != 0
    after = load_file(tmp_path / "on" / "adapter_model.safetensors")
    assert after.keys() == saved.keys() and any(not torch.equal(after[name], saved[name]) for name in saved)


def test_what_cannot_be_gone_on_from(base, first, tmp_path):
    data = first / "data.jsonl"

    def refused(**changes):
        with pytest.raises(TrainingError) as error:
            train(settings(base, data, tmp_path / "out", **changes))
        return str(error.value)

    lora = str(first / "out" / "lora")
    assert "is not of the method slim" in refused(start_from=lora, methods=["slim"])
    assert "is not of the method dora" in refused(start_from=lora, methods=["dora"])
    assert "has no adapter_model.safetensors" in refused(start_from=str(tmp_path), methods=["slim"])
    assert "name one --method" in refused(start_from=lora, methods=["slim", "lora"])
