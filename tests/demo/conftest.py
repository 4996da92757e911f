# SPDX-License-Identifier: Apache-2.0
"""A demo small enough to be built in a test."""

from __future__ import annotations

import pytest

from slim_core.demo import DOWNSTREAM_TASKS, Example, downstream_examples
from slim_core.demo.chat import train_tokenizer
from slim_core.demo.recipe import Conversations, Phase, Recipe
from slim_core.demo.trial import TrialPlan


@pytest.fixture(scope="session")
def tokenizer():
    return train_tokenizer()


@pytest.fixture(scope="session")
def recipe() -> Recipe:
    return Recipe(
        width=16,
        layers=1,
        heads=2,
        inner=16,
        phases=(Phase(2, {"facts": 1}), Phase(2, {"sums": 1})),
        batch=4,
        warmup=1,
    )


@pytest.fixture(scope="session")
def conversations() -> Conversations:
    return Conversations(phases=(Phase(2, {"facts": 1}, turns=(1, 1)),), batch=4, warmup=1)


@pytest.fixture(scope="session")
def plan() -> TrialPlan:
    return TrialPlan(rates=(1e-3,), seeds=(1, 2), steps=2, batch=2, examples=40, questions=2, r=2)


@pytest.fixture(scope="session")
def downstream_test() -> dict[str, list[Example]]:
    return {task: downstream_examples(task, "test", 0, 800) for task in DOWNSTREAM_TASKS}
