# SPDX-License-Identifier: Apache-2.0
"""Adapters come and go while the engine answers: nobody's answer changes, and nothing stays behind."""

import threading

import pytest
import torch
from safetensors.torch import load_file, save_file

from slim_core.adapters import Folder, open_adapter
from slim_core.inference import EngineError, Row, Sampling, variants
from tests.inference.conftest import LONGER, QUESTION, ids, last, rows, save_lora, tiny_base
from tests.inference.probe import EngineProbe


@pytest.fixture
def opened(engine):
    """Opens adapters as a visitor's upload is opened."""
    adapters = []

    def open_folder(folder):
        adapters.append(open_adapter(Folder(folder), engine.shapes))
        return adapters[-1]

    yield open_folder
    for adapter in adapters:
        adapter.delete()


def base_logits(engine):
    probe = EngineProbe(engine)
    with torch.no_grad():
        return probe.logits(probe.encode(LONGER), "base")


def test_a_visitors_adapter_is_a_row_like_the_demos(engine, folders, opened):
    plain, was = base_logits(engine), EngineProbe(engine).modules()
    before = ids(last(engine, rows(LONGER)))
    adapter = opened(folders.slim)
    variant = engine.attach(adapter, name="visitor-1", label="Mine")
    assert (variant.name, variant.kind, variant.label) == ("visitor-1", "slim", "Mine")
    assert variant.detail == "rank 2, 3 + 2 experts, top-2" and adapter.folder.is_dir()
    assert torch.equal(base_logits(engine), plain)
    assert ids(last(engine, [*rows(LONGER), Row("visitor-1", LONGER)])) == [*before, before[2]]
    engine.detach("visitor-1")
    assert EngineProbe(engine).modules() == was and torch.equal(base_logits(engine), plain)
    assert ids(last(engine, rows(LONGER))) == before


def test_one_whose_answers_overflow_is_taken_off_again(engine, opened, tmp_path):
    """Each of its numbers is allowed; what they do together only a forward can tell."""
    save_lora(tmp_path, tiny_base(), target_modules=["gate_proj", "up_proj", "down_proj"], lora_alpha=4096)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    save_file({name: t.sign() * 6e4 for name, t in tensors.items()}, tmp_path / "adapter_model.safetensors")
    plain, was = base_logits(engine), EngineProbe(engine).modules()
    with pytest.raises(EngineError, match="answers overflow"):
        engine.attach(opened(tmp_path), name="bad")
    assert [v.name for v in engine.variants] == ["base", "lora", "slim"]
    assert EngineProbe(engine).modules() == was and torch.equal(base_logits(engine), plain)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA out of memory")])
def test_where_memory_runs_out_the_engine_is_as_before(engine, folders, opened, monkeypatch, error):
    def full(*args):
        raise error

    was = EngineProbe(engine).modules()
    monkeypatch.setattr(variants, "try_out", full)
    with pytest.raises(EngineError, match="is used up"):
        engine.attach(opened(folders.lora), name="large")
    assert EngineProbe(engine).modules() == was and len(engine.variants) == 3


def test_an_answer_that_is_being_written_is_not_disturbed(engine, folders, opened):
    expected = ids(last(engine, rows(QUESTION)))
    adapter = opened(folders.slim)
    writing = engine.answer(rows(QUESTION), Sampling(max_new_tokens=12))
    for _ in range(4):
        next(writing)
    came = threading.Thread(target=engine.attach, args=(adapter,), kwargs={"name": "visitor-1"})
    went = threading.Thread(target=engine.detach, args=("lora",))
    came.start(), went.start()
    # Both wait in line: the variants are as they were until the answer has ended.
    came.join(0.3)
    assert came.is_alive() and went.is_alive() and [v.name for v in engine.variants] == ["base", "lora", "slim"]
    *_, step = writing
    assert ids(step) == expected
    came.join(30), went.join(30)
    assert {v.name for v in engine.variants} == {"base", "slim", "visitor-1"}
    step = last(engine, [Row("visitor-1", QUESTION), Row("lora", QUESTION)])
    assert ids(step)[0] == expected[2] and step.rows[1].error == (
        "There is no variant named 'lora': it may have been removed."
    )
