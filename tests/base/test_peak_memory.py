# SPDX-License-Identifier: Apache-2.0
"""The most memory that something takes."""

import sys

import pytest
import torch

from slim_core.base import peak_memory as memory


CPU = torch.device("cpu")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the peak of resident memory")
def test_the_peak_is_that_since_the_beginning():
    assert memory.watch_memory(CPU)
    before = memory.peak_memory(CPU)
    block = bytearray(200_000_000)
    high = memory.peak_memory(CPU)
    assert 190_000_000 < high - before < 400_000_000
    del block
    assert memory.peak_memory(CPU) >= high - 10_000_000
    memory.watch_memory(CPU)
    assert memory.peak_memory(CPU) < high - 150_000_000


def test_a_system_that_does_not_tell(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "CLEAR", tmp_path / "none" / "clear_refs")
    monkeypatch.setattr(memory, "STATUS", tmp_path / "status")
    assert not memory.watch_memory(CPU) and memory.peak_memory(CPU) is None
