# SPDX-License-Identifier: Apache-2.0
"""Peak memory of an engine with a base alone, and with base, LoRA and SLIM, and of training; each in a process of its
own.
"""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from peft import PeftConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...base.peak_memory import peak_memory, watch_memory
from ...inference import Row
from ...noise import hush
from .compare import BASE, answer
from .machine import dtype_of
from .shapes import adapted, engine_around, method_config, random_base
from .training import LORA, TrainingStep, way_of


TOGETHER = "base, LoRA and SLIM in one batch"
ANSWERING = (LORA, "slim")
# The optimiser's state comes with the first.
STEPS = 2
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


@dataclass(frozen=True)
class MeasuredModel:
    """The models whose memory is measured.

    Attributes:
        shape: of the base; see `random_base`.
        device: where it runs.
        rank: of each expert; the LoRA has this times `experts`.
        experts: number of LoRA experts.
        four_bit: whether the base is in 4 bits.
    """

    shape: str
    device: str
    rank: int
    experts: int
    four_bit: bool = False

    def base(self, vocabulary: int = 0) -> PreTrainedModel:
        """A random base; see `random_base`."""
        return random_base(self.shape, self.device, dtype_of(self.device), vocabulary, self.four_bit)

    def config(self, method: str, base: PreTrainedModel) -> PeftConfig:
        """Of an adapter for this base; see `method_config`."""
        return method_config(method, base, self.rank, self.experts)


def memory_used(tokenizer: PreTrainedTokenizerBase, model: MeasuredModel, *, prompt: int, tokens: int) -> list[Used]:
    """Measure a base alone, and then all three variants as the rows of one batch.

    Args:
        tokenizer: of at most as many tokens as the base.
        model: the base and its adapters.
        prompt: tokens that are read.
        tokens: that are written; at least 2.
    """
    with tempfile.TemporaryDirectory() as folder:
        _in_own_process(_save, tokenizer, model, Path(folder))
        folders = {name: Path(folder) / name for name in ANSWERING}
        return [
            _in_own_process(_used, BASE, tokenizer, model, {}, prompt, tokens),
            _in_own_process(_used, TOGETHER, tokenizer, model, folders, prompt, tokens),
        ]


def memory_of_training(model: MeasuredModel, methods: Sequence[str], *, batch: int, length: int) -> list[Used]:
    """Measure training of a PEFT LoRA, and of each method, each on a base of its own.

    Args:
        model: the base and its adapters.
        methods: beside the LoRA, of `METHODS`.
        batch: examples of a step.
        length: tokens of an example.
    """
    return [_in_own_process(_trained, model, method, batch, length) for method in (LORA, *methods)]


def _in_own_process(run: Callable[..., Result], *arguments: Any) -> Result:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=hush) as pool:
        return pool.submit(run, *arguments).result()


def _save(tokenizer: PreTrainedTokenizerBase, model: MeasuredModel, folder: Path) -> None:
    base = model.base(len(tokenizer))
    for name in ANSWERING:
        adapted(base, model.config(name, base)).save_pretrained(str(folder / name))


def _watched(device: torch.device) -> Callable[[], int | None]:
    """The most bytes from now on without what the process has already, or None; when it is called."""
    watched = watch_memory(device)
    before = peak_memory(device) or 0

    def peak() -> int | None:
        most = peak_memory(device) if watched else None
        return None if most is None else most - before

    return peak


def _used(
    way: str,
    tokenizer: PreTrainedTokenizerBase,
    model: MeasuredModel,
    folders: dict[str, Path],
    prompt: int,
    tokens: int,
) -> Used:
    peak = _watched(torch.device(model.device))
    base = model.base(len(tokenizer))
    engine = engine_around(base, tokenizer, model.shape, folders)
    ids = tuple(torch.randint(5, base.config.vocab_size, (prompt,)).tolist())
    answer(engine, [Row(variant.name, (), text=ids) for variant in engine.variants], tokens)
    weights = engine.info.bytes + sum(variant.bytes for variant in engine.variants[1:])
    return Used(way, peak(), weights)


def _trained(model: MeasuredModel, method: str, batch: int, length: int) -> Used:
    peak = _watched(torch.device(model.device))
    base = model.base()
    ids = torch.randint(5, base.config.vocab_size, (batch, length), device=base.device)
    step = TrainingStep(base, model.config(method, base), ids, checkpointing=False)
    for _ in range(STEPS):
        step()
    return Used(way_of(method), peak(), step.weights)
