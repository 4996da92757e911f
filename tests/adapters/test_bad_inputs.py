# SPDX-License-Identifier: Apache-2.0
"""Everything that people may upload by mistake or on purpose: one sentence each, and the base stays as it is."""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import torch

from slim_core.adapters import AdapterError, Folder, Upload, UploadedFile, check, describe_base, named_source
from slim_core.adapters.kinds import VARIANTS
from slim_core.outside.files import CONFIG, WEIGHTS
from slim_core.peft_tools.lora_import import UNUSED
from tests.adapters.bad_inputs import LIMITS, LORA
from tests.adapters.bad_slim_inputs import SLIM
from tests.adapters.small import (
    IDS,
    config,
    packed,
    tensors,
    weights_bytes,
)
from tests.conftest import build
from tests.method.small import assert_untouched, logits


TABLE = [
    pytest.param(name, spoil, words, id=case) for name, cases in LORA.items() for case, (spoil, words) in cases.items()
]


@pytest.fixture(scope="module")
def base():
    return build("llama")


@pytest.fixture(scope="module")
def before(base):
    return logits(base, IDS)


def refused(checks, base, before, name: str, words: str) -> None:
    """The last check failed under this name with one sentence, and nothing happened to the base."""
    last = checks[-1]
    assert [c.state for c in checks[:-1]] == ["passed"] * (len(checks) - 1) and last.adapter is None
    assert (last.name, last.state) == (name, "failed"), last.sentence
    assert re.search(words, last.sentence), last.sentence
    assert "\n" not in last.sentence and len(last.sentence) < 700 and last.sentence.endswith((".", "}.", "…"))
    assert last.sentence.isprintable() and "Traceback" not in last.sentence
    assert_untouched(base, before, IDS)


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize(("name", "spoil", "words"), TABLE)
def test_a_bad_lora_gets_its_sentence(name, spoil, words, good_lora, base, before, tmp_path):
    folder = shutil.copytree(good_lora, tmp_path / "bad")
    spoil(folder)
    refused(list(check(Folder(folder), describe_base(base), limits=LIMITS)), base, before, name, words)


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize(("name", "spoil", "words"), SLIM.values(), ids=SLIM)
def test_a_bad_slim_adapter_gets_its_sentence(name, spoil, words, good_slim, base, before, tmp_path):
    folder = shutil.copytree(good_slim, tmp_path / "bad")
    spoil(folder)
    refused(list(check(Folder(folder), describe_base(base), limits=LIMITS)), base, before, name, words)


@pytest.mark.parametrize("folder", ["good_lora", "good_slim"])
def test_unspoiled_they_pass(folder, request, base):
    checks = list(check(Folder(request.getfixturevalue(folder)), describe_base(base), limits=LIMITS))
    assert [c.name for c in checks] == [*CHECKS_IN_ORDER] and checks[-1].adapter
    assert all(c.state == "passed" for c in checks), checks


CHECKS_IN_ORDER = ("readable", "format", "size", "fits this base", "weights finite", "changes something", "ready")


def test_the_table_is_long_enough():
    assert len(TABLE) + len(SLIM) >= 80


def test_no_field_that_makes_more_of_a_lora_is_forgotten():
    # A DoRA becomes a row here, with parts of its own; a bias has a sentence of its own.
    assert set(UNUSED) - {"bias", "use_dora"} <= set(VARIANTS)


# -- names of uploaded files, which lead nowhere -----------------------------------------------------------------

NAMES = {
    "parent folders": ("../../../tmp/adapter_config.json", None),
    "absolute": ("/etc/adapter_config.json", None),
    "Windows": ("C:\\temp\\ADAPTER_CONFIG.json", None),
    "second download": ("adapter_config (1).json", None),
    "emoji": ("🦊.json", None),
    "right to left": ("\u202egnosj.json", None),
    "device": ("CON", "no `adapter_config.json` among the files"),
    "parent folder alone": ("../../x", "no `adapter_config.json` among the files"),
    "null": ("adapter_config.json\0.exe", "too long or holds a null"),
    "50 kB": ("a" * 50_000 + ".json", "too long or holds a null"),
    "empty": ("", "no `adapter_config.json` among the files"),
}


@pytest.mark.parametrize(("file_name", "words"), NAMES.values(), ids=NAMES)
def test_the_name_of_an_upload_is_only_compared(file_name, words, good_lora, base, before, private):
    files = (UploadedFile(WEIGHTS, good_lora / WEIGHTS), UploadedFile(file_name, good_lora / CONFIG))
    checks = list(check(Upload(files), describe_base(base)))
    if words:
        refused(checks, base, before, "readable", words)
        return
    adapter = checks[-1].adapter
    assert adapter.folder.parent.parent == private
    assert [path.name for path in adapter.folder.iterdir()] == [WEIGHTS]


def test_a_file_that_is_not_there_any_more(good_lora, base, before):
    files = (UploadedFile(WEIGHTS, Path("gone")), UploadedFile(CONFIG, good_lora / CONFIG))
    refused(list(check(Upload(files), describe_base(base))), base, before, "readable", "cannot be opened; upload it")


def test_a_pipe_does_not_make_us_wait(good_lora, base, before, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    files = (UploadedFile(WEIGHTS, tmp_path / "pipe"), UploadedFile(CONFIG, good_lora / CONFIG))
    refused(list(check(Upload(files), describe_base(base))), base, before, "readable", "is not a regular file")


def test_a_folder_that_is_not_there(base, before, tmp_path):
    refused(list(check(Folder(tmp_path / "x"), describe_base(base))), base, before, "readable", "There is no folder")


def refuses(error: int):
    def refuse(*args, **kwargs):
        raise OSError(error, os.strerror(error))

    return refuse


def test_a_folder_has_no_revision(good_lora):
    with pytest.raises(AdapterError, match="is a folder, which has no revision 'v9'; name a Hub id"):
        named_source(good_lora, "v9")


def test_a_folder_that_may_not_be_read(good_lora, base, before, monkeypatch):
    monkeypatch.setattr(Path, "iterdir", refuses(errno.EACCES))
    refused(
        list(check(Folder(good_lora), describe_base(base))),
        base,
        before,
        "readable",
        "The folder '.*lora' cannot be read: permission denied; name one that you may read",
    )


def test_a_disk_without_room_for_a_folder(good_lora, base, before, monkeypatch):
    monkeypatch.setattr("tempfile.mkdtemp", refuses(errno.ENOSPC))
    words = "The adapter cannot be copied on this machine: no space left on device; free some"
    refused(list(check(Folder(good_lora), describe_base(base))), base, before, "readable", words)


@pytest.mark.usefixtures("nothing_left")
def test_a_disk_without_room_for_a_file(good_lora, base, before, monkeypatch):
    full = MagicMock()
    full.return_value.__enter__.return_value.write = refuses(errno.ENOSPC)
    full.return_value.__exit__.return_value = False
    monkeypatch.setattr("slim_core.outside.files.open", full, raising=False)
    words = r"`adapter_config\.json` cannot be copied: no space left on device; make sure that"
    refused(list(check(Folder(good_lora), describe_base(base))), base, before, "readable", words)


@pytest.mark.parametrize("elsewhere", ["http://169.254.169.254/", "../../etc", "/etc/passwd", "evil/repo"])
def test_the_name_of_the_base_is_shown_and_never_followed(elsewhere, good_lora, base, tmp_path, monkeypatch):
    folder = shutil.copytree(good_lora, tmp_path / "adapter")
    config(base_model_name_or_path=elsewhere)(folder)
    monkeypatch.setattr("socket.socket.connect", None)
    *_, last = checks = list(check(Folder(folder), describe_base(base, "me/my-base")))
    assert checks[3].state == "warning" and "Trained on another base" in checks[3].sentence
    assert elsewhere in checks[3].sentence and "me/my-base" in checks[3].sentence
    assert last.adapter.trained_on == elsewhere and last.adapter.warnings == (checks[3].sentence,)
    assert last.adapter.config.base_model_name_or_path is None


def halves(saved: dict) -> dict:
    """No rank in which both factors hold numbers: B·A is zero, though neither is."""
    lower, left = torch.tensor([2, 3]), torch.tensor([0, 1])
    return {
        key: t.index_fill(0, lower, 0) if key.endswith("lora_A.weight") else t.index_fill(1, left, 0)
        for key, t in saved.items()
    }


def masked(saved: dict) -> dict:
    """The masks drop all that the factors hold."""
    return {key: t.zero_() if key.endswith("slim_columns") else t for key, t in saved.items()}


NOTHING = {
    "A is zero": tensors(lambda saved: {k: t * (not k.endswith("lora_A.weight")) for k, t in saved.items()}),
    "B is zero": tensors(lambda saved: {k: t * (not k.endswith("lora_B.weight")) for k, t in saved.items()}),
    "no common rank": tensors(halves),
    "alpha below float32": config(lora_alpha=1e-320),
    "a pattern's alpha below float32": config(alpha_pattern={"q_proj": 1e-300, "v_proj": 1e-310}),
    "numbers whose product is none": tensors(lambda saved: {k: torch.full_like(t, 1e-30) for k, t in saved.items()}),
}


def marked(folder, base) -> None:
    *_, moves, ready = check(Folder(folder), describe_base(base))
    assert (moves.name, moves.state) == ("changes something", "warning") and "changes nothing" in moves.sentence
    assert ready.adapter.warnings == (moves.sentence,)


@pytest.mark.parametrize("spoil", NOTHING.values(), ids=NOTHING)
def test_an_adapter_that_changes_nothing_is_marked(spoil, good_lora, base, tmp_path):
    folder = shutil.copytree(good_lora, tmp_path / "zero")
    spoil(folder)
    marked(folder, base)


def test_a_slim_adapter_whose_masks_leave_nothing_is_marked(good_slim, base, tmp_path):
    folder = shutil.copytree(good_slim, tmp_path / "zero")
    tensors(masked)(folder)
    marked(folder, base)


@pytest.mark.parametrize("key", ["model.layers.1.self_attn.v_proj", "model.layers.0.self_attn.q_proj"])
def test_one_linear_that_moves_is_enough(key, good_lora, base, tmp_path):
    folder = shutil.copytree(good_lora, tmp_path / "nearly")
    tensors(lambda saved: {k: t * (key in k) for k, t in saved.items()})(folder)
    assert all(result.state == "passed" for result in check(Folder(folder), describe_base(base)))


def test_hostile_headers_take_no_longer_than_others(good_lora, base, before, tmp_path):
    folder = shutil.copytree(good_lora, tmp_path / "bad")
    weights_bytes(lambda data: packed(b'{"' + b'\\"' * 2_000_000))(folder)
    start = time.perf_counter()
    checks = list(check(Folder(folder), describe_base(base)))
    assert time.perf_counter() - start < 5
    refused(checks, base, before, "format", "is not valid JSON")
