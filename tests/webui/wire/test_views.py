# SPDX-License-Identifier: Apache-2.0
"""What the page shows of a session."""

from dataclasses import replace

import pytest
import torch

from slim_core.inference.types import RoutingRecord
from slim_core.webui.wire import views


@pytest.fixture
def readings(monkeypatch):
    """The records whose mean was read."""
    records = []
    read = RoutingRecord.answer_identity.fget
    monkeypatch.setattr(
        RoutingRecord, "answer_identity", property(lambda record: records.append(record) or read(record))
    )
    return records


def shown(session, backend):
    return views.transcript(session, backend)["turns"][0]["answers"]["slim"]["summary"][0]


def test_a_finished_answer_is_read_once(answered, backend, readings):
    record = answered.turns[0].answers["slim"].routing
    first = shown(answered, backend)
    assert first == f"{float(record.identity[:, record.prompt_tokens :].mean()):.0%} of the answer past LoRA"
    assert all(shown(answered, backend) == first for _ in range(5))
    assert [read.variant for read in readings] == ["slim"]


def test_the_same_numbers_in_another_record_are_not_read_again(answered, backend, readings):
    answer = answered.turns[0].answers["slim"]
    first = shown(answered, backend)
    answer.routing = replace(answer.routing)  # as the engine sends it while the others still write
    assert shown(answered, backend) == first
    assert len(readings) == 1


def test_another_record_is_read(answered, backend, readings):
    answer = answered.turns[0].answers["slim"]
    shown(answered, backend)
    weights = torch.zeros_like(answer.routing.weights)
    weights[:, :, -1] = 1
    answer.routing = replace(answer.routing, weights=weights)
    assert shown(answered, backend) == "100% of the answer past LoRA"
    answer.routing = None
    assert "past LoRA" not in shown(answered, backend)
    assert len(readings) == 2
