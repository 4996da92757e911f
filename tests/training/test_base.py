# SPDX-License-Identifier: Apache-2.0
"""Bases that cannot be trained on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from slim_core.training import TrainingError, train
from tests.conftest import tiny_llama
from tests.training.conftest import settings


def broken_bases(folder: Path, base: Path) -> dict[str, Path]:
    made = {name: folder / name for name in ("empty", "adapter", "pickle", "remote", "bare")}
    for path in made.values():
        path.mkdir()
    (made["adapter"] / "adapter_config.json").write_text("{}")
    config = json.loads((base / "config.json").read_text())
    for name in ("pickle", "remote", "bare"):
        (made[name] / "config.json").write_text(json.dumps(config))
    for name in ("pickle", "remote"):
        for file in ("tokenizer.json", "tokenizer_config.json"):
            (made[name] / file).write_bytes((base / file).read_bytes())
    torch.save(tiny_llama().state_dict(), made["pickle"] / "pytorch_model.bin")
    config |= {"model_type": "strange", "auto_map": {"AutoConfig": "run.Evil", "AutoModelForCausalLM": "run.Evil"}}
    (made["remote"] / "config.json").write_text(json.dumps(config))
    (made["remote"] / "run.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")
    return made


SENTENCES = {
    "empty": "The base model .*empty cannot be loaded",
    "adapter": "adapter is an adapter; --base must name the model",
    "pickle": "The base model .*pickle cannot be loaded: .*with safetensors files",
    "remote": "The base model .*remote cannot be loaded",
    "bare": "The tokenizer of .*bare cannot be loaded",
}


@pytest.mark.parametrize("name", SENTENCES)
def test_a_base_that_cannot_be_used_is_a_sentence_and_runs_no_code(name, base, pairs, tmp_path):
    folder = broken_bases(tmp_path, base)[name]
    with pytest.raises(TrainingError, match=SENTENCES[name]) as caught:
        train(settings(folder, pairs, tmp_path / "out"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out").exists()
