# SPDX-License-Identifier: Apache-2.0
"""An adapter's way into a column on a real, tiny model: good, bad, late, and fifty times."""

from __future__ import annotations

import gc
import threading
from pathlib import Path

import huggingface_hub
import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from slim_core.adapters import Folder, HubRepository, Limits
from slim_core.inference import Sampling
from slim_core.outside.files import CONFIG, WEIGHTS
from slim_core.webui.backend import Backend
from slim_core.webui.state import wizard as wizard_module
from slim_core.webui.state.visitor_adapters import VisitorAdapters
from slim_core.webui.state.wizard import NAMES, Wizard, untouched
from tests.adapters.conftest import private
from tests.adapters.small import private_folders
from tests.inference.conftest import QUESTION, engine, folders, ids, last, rows, save_lora, tiny_base
from tests.inference.probe import EngineProbe
from tests.outside.hub_server import Hub, serve
from tests.waiting import until


__all__ = ["engine", "folders", "private"]
LIMITS = Limits(weights_bytes=10**7)


@pytest.fixture
def backend(engine) -> Backend:
    return Backend(engine)


def wizard(backend, folder, label=None, owner="ann") -> Wizard:
    return Wizard(backend.visitor_adapters, owner, Folder(Path(folder)), label, LIMITS)


def finish(checking: Wizard) -> list[str]:
    for _ in checking.run():
        pass
    return [row["state"] for row in checking.view()["rows"]]


def test_a_good_adapter_passes_every_check(backend, folders):
    expected = ids(last(backend.engine, rows(QUESTION)))
    checking = wizard(backend, folders.slim, "Mine")
    assert [row["name"] for row in checking.view()["rows"]] == list(NAMES)
    assert finish(checking) == ["passed"] * 7
    assert checking.view()["rows"][-1]["sentence"] == "SLIM, rank 2, 3 + 2 experts, top-2."
    assert (
        checking.variant.label == "Mine" and backend.visitor_adapters.adapter("ann", checking.variant.name) is not None
    )
    assert ids(last(backend.engine, rows(QUESTION))) == expected


def test_on_a_lent_gpu_it_is_said_that_nothing_was_tried(engine, folders):
    checking = Wizard(VisitorAdapters(engine, zero_gpu=True), "ann", Folder(folders.lora), None, LIMITS)
    assert finish(checking) == ["passed"] * 7
    assert checking.view()["rows"][-1]["sentence"].endswith(
        " The GPU is available only while a prompt runs, so the adapter is tried with your first prompt."
    )
    assert len(engine.variants) == 3


def test_one_that_changes_nothing_passes_with_a_warning(backend, tmp_path):
    save_lora(tmp_path, tiny_base(), init_lora_weights=True)
    checking = wizard(backend, tmp_path)
    assert finish(checking) == ["passed"] * 5 + ["warning", "passed"]
    assert "changes nothing" in checking.view()["rows"][5]["sentence"]
    assert any(
        "changes nothing" in text for text in backend.visitor_adapters.adapter("ann", checking.variant.name).warnings
    )


def test_the_first_check_that_fails_is_the_last(backend, tmp_path, private):
    save_lora(tmp_path, tiny_base(hidden_size=16))
    checking = wizard(backend, tmp_path)
    assert finish(checking) == ["passed"] * 3 + ["failed"] + ["waiting"] * 3
    view = checking.view()
    assert view["ended"] and "made for another base" in view["rows"][3]["sentence"]
    assert checking.variant is None and len(backend.engine.variants) == 3 and not private_folders(private)


def test_no_sentence_tells_where_files_lie_on_the_server(backend, tmp_path):
    save_lora(tmp_path, tiny_base(hidden_size=16))
    for folder in (tmp_path, tmp_path / "nothing"):
        checking = wizard(backend, folder)
        finish(checking)
        if folder == tmp_path:  # a folder is the operator's, whose name may be told
            assert str(tmp_path.parent) not in str(checking.view())
        assert str(backend.engine.info.name) not in str(checking.view())


def test_numbers_that_overflow_together_fail_at_the_end(backend, tmp_path, private):
    save_lora(tmp_path, tiny_base(), target_modules=["gate_proj", "up_proj", "down_proj"], lora_alpha=4096)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    save_file({name: t.sign() * 6e4 for name, t in tensors.items()}, tmp_path / "adapter_model.safetensors")
    checking = wizard(backend, tmp_path)
    assert finish(checking) == ["passed"] * 6 + ["failed"]
    assert "overflow" in checking.view()["rows"][-1]["sentence"]
    assert (
        backend.visitor_adapters.size() == (0, 0)
        and not private_folders(private)
        and len(backend.engine.variants) == 3
    )


def test_a_check_that_breaks_is_a_sentence(backend, folders, monkeypatch, caplog):
    def broken(*_args, **_kwargs):
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(wizard_module, "check", broken)
    checking = wizard(backend, folders.lora)
    assert finish(checking)[0] == "failed"
    assert "secret" not in str(checking.view()) and "secret detail" in caplog.text


def test_it_waits_for_answers_that_are_being_written(backend, folders):
    writing = backend.engine.answer(rows(QUESTION), Sampling(max_new_tokens=12))
    next(writing)
    checking = wizard(backend, folders.lora)
    steps = checking.run()
    for _ in steps:
        if checking.view()["rows"][6]["state"] == "running":
            break
    until(lambda: checking.view()["rows"][6]["sentence"] == wizard_module.WAITING)
    list(writing)
    list(steps)
    assert checking.view()["rows"][6]["state"] == "passed"


def test_who_leaves_meanwhile_leaves_nothing(backend, folders, private):
    writing = backend.engine.answer(rows(QUESTION), Sampling(max_new_tokens=12))
    next(writing)
    checking = wizard(backend, folders.lora)
    steps = checking.run()
    next(steps)
    steps.close()
    list(writing)
    until(lambda: not private_folders(private) and len(backend.engine.variants) == 3)
    assert backend.visitor_adapters.size() == (0, 0)
    # Or right after it is there.
    late = wizard(backend, folders.lora)
    steps = late.run()
    for _ in steps:
        if late.variant is not None:
            break
    steps.close()
    until(lambda: not private_folders(private) and len(backend.engine.variants) == 3)


def test_who_leaves_ends_the_checks(backend, folders, private, monkeypatch):
    """Not one more is begun, and nothing waits for the model."""
    begun, go_on = [], threading.Event()

    def slow(path, limits):
        begun.append("values")
        assert go_on.wait(20)

    monkeypatch.setattr("slim_core.adapters.report.check_values", slow)
    monkeypatch.setattr("slim_core.adapters.report.changes", lambda *_: begun.append("changes"))
    monkeypatch.setattr(backend.visitor_adapters, "add", lambda *_: begun.append("add"))
    checking = wizard(backend, folders.lora)
    steps = checking.run()
    next(steps)
    until(lambda: begun == ["values"])
    steps.close()
    go_on.set()
    until(lambda: not private_folders(private))
    assert begun == ["values"]
    assert [check.name for check in checking.checks] == list(NAMES[:5])


@pytest.mark.nightly
def test_fifty_uploads_and_removals_leave_memory_where_it_was(backend, folders, private, tmp_path):
    # Large enough that one that stayed each time would be seen in the memory of the process.
    save_lora(tmp_path / "large", tiny_base(), r=1024)
    assert (tmp_path / "large" / WEIGHTS).stat().st_size > 3_500_000

    def visit(number: int) -> None:
        folder = (folders.slim, tmp_path / "large")[number % 2]
        checking = wizard(backend, folder, f"Number {number}", f"visitor {number % 3}")
        assert finish(checking)[-1] == "passed"
        backend.visitor_adapters.remove(checking.variant.name)
        until(lambda: len(backend.engine.variants) == 3 and not private_folders(private))

    def footprint() -> tuple:
        gc.collect()
        tensors = [o for o in gc.get_objects() if isinstance(o, torch.Tensor)]
        return (
            len(tensors),
            sum(t.nbytes for t in tensors),
            EngineProbe(backend.engine).modules(),
            backend.visitor_adapters.size(),
        )

    visit(0), visit(1)
    before, threads = footprint(), threading.active_count()
    sizes = []
    for number in range(2, 52):
        visit(number)
        sizes.append(psutil.Process().memory_info().rss)
    tensors, size, *rest = footprint()
    # Fewer where an earlier test's engine has gone in the meantime, which a stopped download may hold for a while.
    assert tensors <= before[0] and size <= before[1] and tuple(rest) == before[2:]
    # The allocator settles in the first rounds; the twenty large ones since then have more than three times as much.
    assert sizes[-1] - sizes[9] < 20_000_000
    # Servers of earlier tests come and go; fifty uploads that left one each would be more.
    until(lambda: threading.active_count() < threads + 25)


def test_who_leaves_ends_the_download(backend, private, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 4)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    huggingface_hub.utils.close_session()
    with serve(Hub({CONFIG: b"{}", WEIGHTS: bytes(10**6)}, way="trickle")) as hub:
        source = HubRepository("me/lora", endpoint=hub.url)
        checking = Wizard(backend.visitor_adapters, "ann", source, None, LIMITS)
        steps = checking.run()
        for _ in steps:
            if "fetched" in checking.view()["rows"][0]["sentence"]:
                break
        steps.close()
        until(lambda: not private_folders(private))
        until(lambda: checking.checks)
        assert checking.checks[0].sentence == "Fetching me/lora was stopped."
    huggingface_hub.utils.close_session()


def test_before_the_first_check():
    assert [row["state"] for row in untouched()["rows"]] == ["waiting"] * 7
