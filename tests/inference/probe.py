# SPDX-License-Identifier: Apache-2.0
"""Inside of an engine. This file alone knows where an engine keeps what is no part of its interface."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from slim_core.base.prompts import Prompts
from slim_core.inference import BaseSwitch, Engine, Message, Stops
from slim_core.inference.fair_queue import FairQueue, QueuePlace
from slim_core.inference.variants import peft_name


class EngineProbe:
    """What tests look at, or put in, behind an engine's back.

    Args:
        engine: a real one; a scripted one has nothing of this.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def base(self) -> PreTrainedModel:
        """The base model; where adapters are attached, with their layers in it."""
        return self._engine._model

    @property
    def adapted(self) -> PeftModel | PreTrainedModel:
        """What takes `adapter_names`: the `PeftModel` around the base; the base itself where nothing is attached."""
        return self._engine._adapters._model

    @property
    def prompts(self) -> Prompts:
        """How conversations are read."""
        return self._engine._prompts

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.prompts.tokenizer

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """The token ids of a conversation, up to where the answer begins."""
        return self.prompts.encode(messages)

    def modules(self) -> list[tuple[str, int]]:
        """Names and identities of the base's modules: the same list again if nothing was put in or taken out."""
        return [(name, id(module)) for name, module in self.base.named_modules()]

    def logits(self, ids: Sequence[int], variant: str) -> Tensor:
        """(1, T, V) of one forward without a cache, as a variant reads the T tokens."""
        own = {"adapter_names": [peft_name(variant)]} if isinstance(self.adapted, PeftModel) else {}
        return self.adapted(torch.tensor([list(ids)], device=self.base.device), **own).logits

    def join(self) -> QueuePlace:
        """Get in line before the model."""
        return self._engine._scheduler.join()

    def one_at_a_time(self) -> None:
        """Nobody shares a batch; all others wait in line."""
        self.most_rows(0)

    def most_rows(self, rows: int, tokens: float | None = None) -> None:
        """Let so many rows be written at once, and caches hold so many tokens."""
        scheduler = self._engine._scheduler
        scheduler.most_rows = rows
        scheduler._most_bytes = None if tokens is None else tokens * scheduler._forwards.column_bytes

    @property
    def most_rows_now(self) -> int:
        """How many rows may be written at once."""
        return self._engine._scheduler.most_rows

    @property
    def in_line(self) -> int:
        """How many have the model or wait for it."""
        return self._engine._scheduler.busy


def file_of(stops: Stops) -> str:
    """Where the flags are that other processes share."""
    return stops._path


def listen(switch: BaseSwitch, stages: list[tuple]) -> None:
    """Note every stage that a switch tells of, with what it counted."""
    tell = switch._report

    def note(stage: str, *counted, **more) -> None:
        stages.append((stage, *counted))
        tell(stage, *counted, **more)

    switch._report = note


def in_line(queue: FairQueue) -> int:
    """How many are in a line, with the one whose turn it is."""
    return len(queue)
