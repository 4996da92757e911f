# SPDX-License-Identifier: Apache-2.0
"""Settings of a training that make no sense end in one sentence that names the flag."""

from __future__ import annotations

import pytest
import typer

from slim_core.cli import app
from slim_core.training import TrainingError, TrainSettings
from slim_core.training.settings import OWN_FLAGS


BAD_SETTINGS = [
    ({"data": []}, "No data were given"),
    ({"methods": ["qlora"]}, "--method must be one of lora, dora, slim, .*, not qlora"),
    ({"methods": ["slim", "slim"]}, "name each method once"),
    ({"batch_size": 0}, "--batch-size must be 1 or more, not 0"),
    ({"batch_size": 16, "micro_batch": 3}, "--batch-size 16 is not a multiple of --micro-batch 3 times 1 device"),
    ({"batch_size": 2, "micro_batch": 4}, "--batch-size 2 is not a multiple of --micro-batch 4"),
    ({"learning_rate": float("nan")}, "--learning-rate must be above 0, not nan"),
    ({"epochs": 0.0}, "--epochs must be above 0"),
    ({"validation_share": 1.0}, "--validation-share must be at least 0 and below 1"),
    ({"validation": ["a"], "validation_split": "b"}, "Give --validation or --validation-split, not both"),
    ({"max_length": 1}, "--max-length must be 2 tokens or more"),
    ({"seed": -1}, "--seed must be at least 0"),
    ({"slim": {"clusters": 3}}, "--slim has no field 'clusters'; there are "),
    ({"slim": {"target_modules": ["q_proj"]}}, "--slim target_modules: pass --target instead, for all methods alike"),
    ({"slim": {"r": 4}}, "--slim r: pass --rank instead"),
    ({"slim": {"trainable_token_indices": [1]}}, "--slim has no field 'trainable_token_indices'; there are "),
    ({"slim": {"yield_mode": "odd"}}, "These settings of SLIM are invalid: .*yield_mode"),
    ({"top_k": 11}, "These settings of SLIM are invalid: `top_k` is 11"),
]


@pytest.mark.parametrize("changes,sentence", BAD_SETTINGS)
def test_bad_settings_get_one_sentence(changes, sentence, tmp_path):
    small = {"base": "b", "data": ["a.jsonl"], "output": tmp_path}
    with pytest.raises(TrainingError, match=sentence):
        TrainSettings(**(small | changes))


def test_the_flags_that_are_named_are_there():
    train = typer.main.get_command(app).commands["train"]
    assert set(OWN_FLAGS.values()) <= {name for option in train.params for name in option.opts}
