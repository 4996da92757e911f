# SPDX-License-Identifier: Apache-2.0
"""A training step: forward, backward and the optimiser, of a PEFT LoRA and of other methods of equal total rank."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from peft import PeftConfig
from transformers import PreTrainedModel

from ...baselines import METHODS
from .machine import bytes_of
from .shapes import adapted, method_config
from .turns import Measured, Measures, Way, summary, synchronise, take_turns


LORA = "lora"


class TrainingStep:
    """One model in training; each call is a step.

    Attributes:
        peak: the most bytes of its last step on CUDA, without what other models take; None elsewhere.
        weights: bytes of the base and the adapter.
        parameters: how many are trained.
    """

    def __init__(self, base: PreTrainedModel, config: PeftConfig, ids: torch.Tensor, checkpointing: bool) -> None:
        self._model, self._ids = adapted(base, config).train(), ids
        if checkpointing:
            self._model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            self._model.enable_input_require_grads()
        trainable = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        self._optimiser = torch.optim.AdamW(trainable, lr=1e-4)
        self.parameters = sum(parameter.numel() for parameter in trainable)
        self.peak: int | None = None
        self.weights = bytes_of([*self._model.parameters(), *self._model.buffers()])

    def __call__(self) -> Measures:
        device = self._ids.device
        counts = device.type == "cuda"
        synchronise(device)
        before = torch.cuda.memory_allocated(device) if counts else 0
        if counts:
            torch.cuda.reset_peak_memory_stats(device)
        start = time.perf_counter()
        self._model(input_ids=self._ids, labels=self._ids).loss.backward()
        self._optimiser.step()
        self._optimiser.zero_grad()
        synchronise(device)
        seconds = time.perf_counter() - start
        if counts:
            # Memory of this model alone, since the others are in memory too.
            state = (t for s in self._optimiser.state.values() for t in s.values() if isinstance(t, torch.Tensor))
            self.peak = torch.cuda.max_memory_allocated(device) - before + self.weights + bytes_of(state)
        return {"step": seconds}


def way_of(method: str) -> str:
    """How a method is called in the tables."""
    return "PEFT: LoRA" if method == LORA else METHODS[method].title


def time_training(
    base: PreTrainedModel, methods: Sequence[str], *, rank: int, experts: int, batch: int, length: int, rounds: int
) -> list[Measured]:
    """Time a step of a LoRA and of each method in turn, with and without gradient checkpointing.

    Args:
        base: random weights, whose parameters take no gradient.
        methods: beside the LoRA, of `METHODS`.
        rank: of each expert; the LoRA has this times `experts`.
        experts: number of LoRA experts.
        batch: examples of a step.
        length: tokens of an example.
        rounds: how often each has its turn.
    """
    ids = torch.randint(5, base.config.vocab_size, (batch, length), device=base.device)
    configs = {way_of(method): method_config(method, base, rank, experts) for method in (LORA, *methods)}
    steps = {way: TrainingStep(base, config, ids, False) for way, config in configs.items()}
    steps |= {f"{way}, checkpointing": TrainingStep(base, config, ids, True) for way, config in configs.items()}
    ways: dict[str, Way] = dict(steps)

    def facts(way: str, measure: str, seconds: float) -> dict[str, float]:
        known = {"parameters": steps[way].parameters, "tokens_per_second": batch * length / seconds}
        peak = steps[way].peak
        return known if peak is None else known | {"peak_bytes": peak}

    lora = way_of(LORA)
    return summary(take_turns(ways, rounds), (lora, f"{lora}, checkpointing"), facts)
