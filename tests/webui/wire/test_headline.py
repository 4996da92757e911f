# SPDX-License-Identifier: Apache-2.0
"""What was measured, in a sentence on the first page."""

import pytest

from slim_core.webui.state.session import Session
from slim_core.webui.wire.forgetting import headline
from tests.ui.scripted import RESULTS, VARIANTS


def results(general, downstream, tasks=1):
    names = ("base", "lora", "slim")
    return {
        "tasks": {str(i): {"kind": "downstream"} for i in range(tasks)},
        "general": dict(zip(names, general, strict=True)),
        "downstream": dict(zip(names, downstream, strict=True)),
    }


@pytest.mark.parametrize(
    ("stored", "kept", "learned"),
    [
        (
            results((0.982, 0.414, 0.982), (0.538, 0.957, 0.949), 3),
            "Fine-tuned on three tasks, LoRA falls from 98% to 41% on everything else; SLIM keeps 98%.",
            "Of the tasks LoRA knows 96%, SLIM 95%; the base knew 54%.",
        ),
        (
            results((0.9, 0.9, 0.85), (0.1, 0.8, 0.8)),
            "Fine-tuned on one task, LoRA stays at 90% on everything else; SLIM keeps 85%.",
            "Of the task both know 80%; the base knew 10%.",
        ),
        (
            results((0.9, 0.95, 0.9), (0.1, 0.8, 0.9), 12),
            "Fine-tuned on 12 tasks, LoRA rises from 90% to 95% on everything else; SLIM keeps 90%.",
            "Of the tasks LoRA knows 80%, SLIM 90%; the base knew 10%.",
        ),
    ],
)
def test_it_says_what_is_stored(stored, kept, learned):
    assert headline(stored, Session()) == {"kept": kept, "learned": learned}


def test_it_says_what_the_gate_keeps_where_that_was_measured():
    stored = results((0.982, 0.45, 0.982), (0.538, 0.96, 0.954), 3)
    stored["general"]["slim_open"] = 0.641
    kept = "LoRA falls from 98% to 45% on everything else; SLIM keeps 98%, and with its gate forced open 64%."
    assert headline(stored, Session())["kept"] == f"Fine-tuned on three tasks, {kept}"


def test_it_says_nothing_of_adapters_that_were_not_measured():
    session = Session()
    assert headline(RESULTS, session) is not None
    assert headline(None, session) is None
    assert headline({"tasks": RESULTS["tasks"]}, session) is None
    session.own_variants["lora"] = VARIANTS[1]
    assert headline(RESULTS, session) is None
