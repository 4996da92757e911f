# SPDX-License-Identifier: Apache-2.0
"""The benchmark of comparisons says how much of SLIM it has timed."""

from dataclasses import replace

import pytest
import torch

from slim_core.demo.chat import train_tokenizer
from slim_core.evaluation.bench.compare import experts_used
from slim_core.evaluation.bench.shapes import lora_config, random_base, random_engine, slim_config


@pytest.mark.parametrize(("num_identity", "expected"), [(0, 3.0), (2, None)])
def test_experts_are_counted(num_identity, expected):
    config = replace(
        slim_config(2, 4), num_identity=num_identity, top_k=3, yield_mode="calibrated", yield_strength=0.0
    )
    tokenizer = train_tokenizer(["The sea is blue."])
    base = random_base("tiny", "cpu", torch.float32, len(tokenizer))
    engine = random_engine(base, tokenizer, "tiny", {"lora": lora_config(8), "slim": config})
    used = experts_used(engine, "The sea?", 4)
    assert used["lora"] == 1
    assert used["slim"] == expected if expected else 1 <= used["slim"] < 3
