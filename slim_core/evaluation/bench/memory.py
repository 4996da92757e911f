# SPDX-License-Identifier: Apache-2.0
"""Peak memory of an engine with a base alone, and with base, LoRA and SLIM; each in a process of its own."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from peft import PeftConfig
from transformers import PreTrainedTokenizerBase

from ...base.peak_memory import peak_memory, watch_memory
from ...inference import Row
from .compare import BASE, answer
from .machine import dtype_of
from .shapes import adapted, engine_around, lora_config, random_base, slim_config


TOGETHER = "base, LoRA and SLIM in one batch"
Result = TypeVar("Result")


@dataclass(frozen=True)
class Used:
    """Memory of one way of answering.

    Attributes:
        way: its name.
        peak: the most bytes from before the base was made until its answers were complete, without what the process
            had before; None if the system does not tell.
        weights: bytes of the base and its adapters.
    """

    way: str
    peak: int | None
    weights: int

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def memory_used(
    tokenizer: PreTrainedTokenizerBase, *, shape: str, device: str, rank: int, experts: int, prompt: int, tokens: int
) -> list[Used]:
    """Measure a base alone, and then all three variants as the rows of one batch.

    Args:
        tokenizer: of at most as many tokens as the base.
        shape: of the base; see `random_base`.
        device: where it runs.
        rank: of each expert; the LoRA has this times `experts`.
        experts: number of LoRA experts.
        prompt: tokens that are read.
        tokens: that are written; at least 2.
    """
    with tempfile.TemporaryDirectory() as folder:
        _in_own_process(_save, tokenizer, shape, Path(folder), rank, experts)
        sizes = (prompt, tokens)
        return [
            _in_own_process(_used, BASE, tokenizer, shape, device, {}, *sizes),
            _in_own_process(
                _used, TOGETHER, tokenizer, shape, device, {n: Path(folder) / n for n in ("lora", "slim")}, *sizes
            ),
        ]


def _in_own_process(run: Callable[..., Result], *arguments: Any) -> Result:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(run, *arguments).result()


def _save(tokenizer: PreTrainedTokenizerBase, shape: str, folder: Path, rank: int, experts: int) -> None:
    base = random_base(shape, "cpu", torch.float32, len(tokenizer))
    configs: dict[str, PeftConfig] = {"lora": lora_config(rank * experts), "slim": slim_config(rank, experts)}
    for name, config in configs.items():
        adapted(base, config).save_pretrained(str(folder / name))


def _used(
    way: str,
    tokenizer: PreTrainedTokenizerBase,
    shape: str,
    device: str,
    folders: dict[str, Path],
    prompt: int,
    tokens: int,
) -> Used:
    watched = watch_memory(torch.device(device))
    before = peak_memory(torch.device(device)) or 0
    base = random_base(shape, device, dtype_of(device), len(tokenizer))
    engine = engine_around(base, tokenizer, shape, folders)
    ids = tuple(torch.randint(5, base.config.vocab_size, (prompt,)).tolist())
    answer(engine, [Row(variant.name, (), text=ids) for variant in engine.variants], tokens)
    peak = peak_memory(torch.device(device)) if watched else None
    weights = engine.info.bytes + sum(variant.bytes for variant in engine.variants[1:])
    return Used(way, None if peak is None else peak - before, weights)
