# SPDX-License-Identifier: Apache-2.0
"""From a base model's name to an engine."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import torch

from ..base.choice import BaseChoice
from ..base.files import base_files
from ..base.loading import LoadPlan, bits_of, plan, read_prompts, read_weights
from ..base.progress import OnProgress
from ..base.prompts import Prompts
from .engine import Engine
from .packed_linear import pack_linears
from .types import Kind


# Maximum tokens of prompt and answer with a visitor's base, whose config may claim any number.
VISITOR_TOKENS = 32_768


def read_base(
    choice: BaseChoice,
    folder: Path,
    load_plan: LoadPlan,
    prompts: Prompts,
    on_progress: OnProgress = lambda done, total: None,
) -> Engine:
    """Load a base from its folder and attach the adapters that belong to it.

    Args:
        choice: the base.
        folder: its files.
        load_plan: as `plan` returns it.
        prompts: as `read_prompts` returns it.
        on_progress: called with weights read so far and in all.

    Raises:
        EngineError: if something cannot be loaded or does not fit.
    """
    model = read_weights(choice, folder, load_plan, on_progress)
    pack_linears(model)
    engine = Engine(model, prompts, choice.name or choice.base)
    if not choice.operator:
        engine.info = replace(engine.info, context_length=min(engine.info.context_length, VISITOR_TOKENS))
    adapters: tuple[tuple[str | None, Kind], ...] = ((choice.lora, "lora"), (choice.slim, "slim"))
    for adapter, kind in adapters:
        if adapter is not None:
            engine.attach(adapter, name=kind, kind=kind)
    return engine


def load_engine(
    base: str | Path,
    *,
    lora: str | Path | None = None,
    slim: str | Path | None = None,
    name: str | None = None,
    revision: str | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    four_bit: bool = False,
    eight_bit: bool = False,
) -> Engine:
    """Load a base model once and attach a LoRA and a SLIM adapter, each optional.

    Args:
        base: folder or Hub id.
        lora: folder or Hub id of a LoRA, which becomes the variant "lora".
        slim: of a SLIM adapter, which becomes the variant "slim".
        name: what people call the base; None for its folder or Hub id.
        revision: version of the base on the Hub.
        device: None for CUDA or MPS where they are, else the CPU. "cuda" takes all GPUs where one is too small.
        dtype: None for bfloat16 where the device has it, else float32; a float32 base stays so on a CPU.
        four_bit: keep the base's Linears in 4 bits (NF4, double quantisation).
        eight_bit: in 8 bits.

    Raises:
        EngineError: if something cannot be loaded or does not fit.
    """
    bits = bits_of(four_bit, eight_bit)
    rows = (None if lora is None else str(lora), None if slim is None else str(slim))
    choice = BaseChoice(str(base), revision, bits, name, *rows)
    return open_base(choice, device, dtype)


def open_base(
    choice: BaseChoice, device: str | torch.device | None = None, dtype: torch.dtype | None = None
) -> Engine:
    """`load_engine` for a `BaseChoice`.

    Raises:
        EngineError: if something cannot be loaded or does not fit.
    """
    with base_files(choice) as files:
        load_plan = plan(choice, files.config(), device, dtype)
        folder = files.fetch(lambda done, total: None, threading.Event())
        return read_base(choice, folder, load_plan, read_prompts(choice, folder))
