# SPDX-License-Identifier: Apache-2.0
"""Small adapters on disk, and ways to spoil them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from slim_core.adapters import Check, Folder, check, describe_base
from slim_core.outside.files import CONFIG, WEIGHTS
from tests.conftest import build
from tests.method.small import slim


Spoil = Callable[[Path], None]
KEY = "base_model.model.model.layers.0.self_attn.q_proj."
IDS = torch.randint(3, 99, (3, 12), generator=torch.Generator().manual_seed(1))


def lora(**changes: Any) -> LoraConfig:
    """A small LoRA that changes the output without any training."""
    small = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}
    return LoraConfig(**(small | {"task_type": "CAUSAL_LM"} | changes))


def save(config: PeftConfig, folder: Path, family: str = "llama", dtype: torch.dtype | None = None) -> Path:
    """An adapter as PEFT itself writes it, with tensors of `dtype` if given."""
    torch.manual_seed(3)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set")
        model = get_peft_model(build(family), config)
    fill_statistics(model)
    model.save_pretrained(folder)
    if dtype is not None:
        tensors(lambda saved: {key: t.to(dtype) if t.is_floating_point() else t for key, t in saved.items()})(folder)
    return folder


def fill_statistics(model: PeftModel) -> None:
    """Clusters as after training, without any."""
    generator = torch.Generator().manual_seed(5)
    for name, buffer in model.named_buffers():
        if "slim_center" in name or "slim_token_mean" in name:
            buffer.copy_(torch.randn(buffer.shape, generator=generator))
        elif "slim_var" in name or "slim_token_var" in name:
            buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
        elif "slim_count" in name:
            buffer.fill_(7)
        elif "slim_reference" in name:
            buffer.fill_(0.5)


def save_slim(folder: Path, family: str = "llama", **changes: Any) -> Path:
    return save(slim(task_type="CAUSAL_LM", **changes), folder, family)


def checks(folder: Path, model: torch.nn.Module | None = None, **kwargs: Any) -> list[Check]:
    return list(check(Folder(folder), describe_base(model) if model is not None else None, **kwargs))


# -- ways to spoil an adapter ------------------------------------------------------------------------------------


def config(**changes: Any) -> Spoil:
    """Other values of fields."""

    def spoil(folder: Path) -> None:
        raw = json.loads((folder / CONFIG).read_text()) | changes
        (folder / CONFIG).write_text(json.dumps(raw))

    return spoil


def without(field: str) -> Spoil:
    def spoil(folder: Path) -> None:
        raw = json.loads((folder / CONFIG).read_text())
        del raw[field]
        (folder / CONFIG).write_text(json.dumps(raw))

    return spoil


def config_text(change: Callable[[str], str]) -> Spoil:
    return lambda folder: _rewrite(folder / CONFIG, lambda data: change(data.decode()).encode())


def config_bytes(data: bytes) -> Spoil:
    return lambda folder: _rewrite(folder / CONFIG, lambda _: data)


def weights_bytes(change: Callable[[bytes], bytes]) -> Spoil:
    return lambda folder: _rewrite(folder / WEIGHTS, change)


def _rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def tensors(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Spoil:
    def spoil(folder: Path) -> None:
        saved = {key: tensor.clone() for key, tensor in load_file(folder / WEIGHTS).items()}
        save_file({key: t.contiguous() for key, t in change(saved).items()}, folder / WEIGHTS)

    return spoil


def tensor(key: str, change: Callable[[Tensor], Tensor]) -> Spoil:
    return tensors(lambda saved: saved | {key: change(saved[key])})


def header(change: Callable[[dict[str, Any]], Any]) -> Spoil:
    """Another header in front of the same data."""

    def rewritten(data: bytes) -> bytes:
        length = int.from_bytes(data[:8], "little")
        return packed(change(json.loads(data[8 : 8 + length])), data[8 + length :])

    return weights_bytes(rewritten)


def packed(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def private_folders(root: Path) -> list[Path]:
    return [path for path in root.glob("slim-adapters-*/*") if path.is_dir()]
