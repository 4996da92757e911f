# SPDX-License-Identifier: Apache-2.0
"""Uploaded files go when the last of their senders is done with them."""

from pathlib import Path

from slim_core.webui.state.uploads import Uploads


def sent(root, name):
    folder = root / name
    folder.mkdir()
    (folder / "file").write_text("x")
    return str(folder / "file")


def test_a_file_and_its_folder_go(tmp_path):
    uploads, one, two = Uploads(), sent(tmp_path, "1"), sent(tmp_path, "2")
    uploads.note("ann", [one, two])
    uploads.drop("ann", [one])
    assert [path.name for path in tmp_path.iterdir()] == ["2"]
    uploads.drop("ann")
    assert list(tmp_path.iterdir()) == []
    uploads.drop("ann")


def test_what_two_visitors_sent_stays_until_both_are_done(tmp_path):
    uploads, path = Uploads(), sent(tmp_path, "1")
    uploads.note("ann", [path])
    uploads.note("bob", [path])
    uploads.drop("ann")
    assert list(tmp_path.iterdir()) != []
    uploads.drop("bob", [path])
    assert list(tmp_path.iterdir()) == []


def test_what_was_never_sent_is_not_touched(tmp_path):
    uploads, other = Uploads(), sent(tmp_path, "1")
    uploads.note("bob", [other])
    uploads.drop("ann", [other, str(tmp_path / "nothing")])
    assert list(tmp_path.iterdir()) != []


def test_what_is_sent_again_while_it_is_read_stays(tmp_path):
    uploads, path = Uploads(), sent(tmp_path, "1")
    uploads.note("ann", [path])
    with uploads.reading("ann", [path]):
        uploads.note("ann", [path])
    assert Path(path).exists()
    with uploads.reading("ann", [path]):
        assert Path(path).exists()
    assert not Path(path).exists()


def test_who_leaves_while_a_file_is_read_takes_it_not_away(tmp_path):
    uploads, path = Uploads(), sent(tmp_path, "1")
    uploads.note("ann", [path])
    with uploads.reading("ann", [path]):
        uploads.drop("ann")
        assert Path(path).exists()
    assert not Path(path).exists()
