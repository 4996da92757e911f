# SPDX-License-Identifier: Apache-2.0
"""Adapters that are saved once, and private folders that are seen."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from slim_core.outside.private import delete_process_folders
from tests.adapters.small import lora, private_folders, save, save_slim
from tests.waiting import until


@pytest.fixture(scope="session")
def good_lora(tmp_path_factory) -> Path:
    return save(lora(), tmp_path_factory.mktemp("good") / "lora")


@pytest.fixture(scope="session")
def good_slim(tmp_path_factory) -> Path:
    return save_slim(tmp_path_factory.mktemp("good") / "slim", target_modules=["q_proj", "v_proj"])


@pytest.fixture(autouse=True)
def private(tmp_path, monkeypatch) -> Iterator[Path]:
    """Where private copies go during a test."""
    root = tmp_path / "private"
    root.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(root))
    yield root
    delete_process_folders()


@pytest.fixture
def nothing_left(private):
    """Fails the test if a private copy outlives it."""
    yield
    # A download that nobody waits for any more tidies up when it notices.
    until(lambda: not private_folders(private))
