# SPDX-License-Identifier: Apache-2.0
"""Uploaded files: what they may take, how long they stay, and what they are called outside."""

import os
import time

import pytest

from slim_core.webui.http.folder import LEAST, STALLED, FileError, UploadFolder
from slim_core.webui.http.refusal import Refusal


HASH = "a" * 64


def put(folder: UploadFolder, name: str, size: int = 10, age: float = 0) -> None:
    path = folder.path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    os.utime(path, (time.time() - age,) * 2)


def test_old_files_go_and_those_that_were_given_up_on_their_way(tmp_path):
    folder = UploadFolder(tmp_path, 10**9, 1000)
    put(folder, f"{HASH}/new")
    put(folder, f"{'b' * 64}/old", age=1001)
    put(folder, "tmp-on-its-way", age=STALLED - 10)
    put(folder, "tmp-given-up", age=STALLED + 1)
    folder.sweep()
    assert {path.name for path in tmp_path.rglob("*")} == {HASH, "new", "tmp-on-its-way"}


def test_all_files_together_have_a_bound_and_small_ones_count_too(tmp_path):
    folder = UploadFolder(tmp_path, 10 * LEAST, 1000)
    folder.take(9 * LEAST)
    folder.take(LEAST)
    # Nothing of it is there, so it is counted anew.
    folder.take(LEAST)
    for i in range(10):
        put(folder, f"{i:064x}/f", size=1)
    folder.sweep()
    with pytest.raises(
        Refusal, match=r"There is no space for more files now: 655,360 bytes is all .+ in 16 minutes\."
    ):
        folder.take(1)
    (folder.path / f"{0:064x}" / "f").unlink()
    folder.take(LEAST)


def test_a_file_has_another_name_outside(tmp_path):
    folder = UploadFolder(tmp_path, 10**9, 1000)
    put(folder, f"{HASH}/my file.json")
    hidden = folder.hide({"path": f"{tmp_path}/{HASH}/my file.json", "size": 10, "url": f"/file={tmp_path}/{HASH}/x"})
    assert hidden == {"path": f"/uploads/{HASH}/my file.json", "size": 10, "url": f"/file=/uploads/{HASH}/x"}
    assert folder.find(hidden) == hidden | {"path": f"{tmp_path}/{HASH}/my file.json", "url": None}


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/etc/passwd",
        f"/uploads/{HASH}/missing",
        f"/uploads/{HASH}/..",
        f"/uploads/{HASH}/../{HASH}/there",
        f"/uploads/{HASH}/link",
        f"/uploads/{HASH}",
        "/uploads/../there",
        f"/uploads/{HASH}/{'x' * 5000}",
        f"/uploads/{HASH}/a\0b",
        f"/uploads/{HASH.upper()}/there",
    ],
)
def test_names_of_no_file(tmp_path, name):
    folder = UploadFolder(tmp_path, 10**9, 1000)
    put(folder, f"{HASH}/there")
    (tmp_path / HASH / "link").symlink_to("/etc/passwd")
    with pytest.raises(FileError, match="There is no uploaded file"):
        folder.inside(name)
