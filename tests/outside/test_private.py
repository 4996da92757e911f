# SPDX-License-Identifier: Apache-2.0
"""Private folders are deleted when their process ends, and swept by another process if it was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from slim_core.outside import private


MAKE = """
import sys
from slim_core.outside.private import private_folder
(private_folder() / "adapter_config.json").write_text("{}")
print("made", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch) -> Iterator[Path]:
    """The folder for temporary files."""
    root = tmp_path / "temporary"
    root.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(root))
    yield root
    private.delete_process_folders()


@pytest.fixture
def other(root) -> Iterator[subprocess.Popen]:
    """Another process, which has a private folder."""
    command, pipe = [sys.executable, "-c", MAKE], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, env=os.environ | {"TMPDIR": str(root)}) as process:
        assert process.stdout.readline() == b"made\n"
        for path in root.iterdir():
            make_old(path)
        yield process
        process.kill()


def make_old(path: Path) -> None:
    long_ago = time.time() - 2 * private.YOUNG_SECONDS
    os.utime(path, (long_ago, long_ago))


def test_a_folder_is_new_and_for_its_user_alone():
    first, second = private.private_folder(), private.private_folder()
    assert first != second and not list(first.iterdir())
    assert [path.stat().st_mode & 0o77 for path in (first, first.parent)] == [0, 0]


def test_a_process_deletes_its_folders_when_it_ends(root, other):
    other.communicate(timeout=60)
    assert not list(root.iterdir())


def test_what_a_killed_process_left_is_swept(root, other):
    other.send_signal(signal.SIGKILL)
    other.wait(timeout=60)
    assert len(list(root.glob("*/*/adapter_config.json"))) == 1
    private.sweep_private_folders()
    assert not list(root.iterdir())


def test_folders_in_use_are_not_swept(root, other):
    mine = private.private_folder()
    make_old(mine.parent)
    private.sweep_private_folders()
    assert len(list(root.glob("*/*/adapter_config.json"))) == 1 and mine.is_dir()


def test_young_folders_links_and_other_folders_are_not_swept(root):
    (root / f"{private.PREFIX}young").mkdir()
    (root / "elsewhere").mkdir()
    make_old(root / "elsewhere")
    (root / f"{private.PREFIX}link").symlink_to(root / "elsewhere")
    private.sweep_private_folders()
    assert len(list(root.iterdir())) == 3
