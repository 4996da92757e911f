# SPDX-License-Identifier: Apache-2.0
"""The benchmark of comparisons says how much of SLIM it has timed."""

import pytest

from slim_core import SlimConfig
from slim_core.demo.chat import train_tokenizer
from slim_core.evaluation.compare_speed import experts_used, random_engine


@pytest.mark.parametrize(("num_identity", "expected"), [(0, 3.0), (2, None)])
def test_experts_are_counted(num_identity, expected):
    config = SlimConfig(
        r=2,
        num_experts=4,
        num_identity=num_identity,
        top_k=3,
        target_modules="all-linear",
        yield_mode="calibrated",
        yield_strength=0.0,
    )
    engine = random_engine(train_tokenizer(["The sea is blue."]), 32, 1, config)
    used = experts_used(engine, "The sea?", 4)
    assert used["lora"] == 1
    assert used["slim"] == expected if expected else 1 <= used["slim"] < 3
