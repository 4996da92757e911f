# SPDX-License-Identifier: Apache-2.0
"""Drift: how likely variants find the base's own answer. If they find it unlikely, they have forgotten it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..method import AS_TRAINED, BASE_ROW, GateSetting
from ..peft_tools import RowScopes
from .cache import growing_cache, longest_piece
from .forward import forward_arguments
from .types import Drift, Reading, Step, VariantDrift
from .variants import peft_name


# Values of the largest tensor over the vocabulary that is held at once; a few of this size are alive together.
LOGITS_AT_ONCE = 2**25


@dataclass(frozen=True, eq=False)
class AnswerReading:
    """An answer of the base that variants read, in one batch with the base itself.

    Attributes:
        prompt: P token ids before the answer.
        answer: T > 0 token ids.
        variants: names of the readers.
        gates: how soon theirs close; empty for as they were trained.
        stopped: whether the result is no longer wanted.
    """

    prompt: Sequence[int]
    answer: Sequence[int]
    variants: Sequence[str]
    gates: Sequence[GateSetting] = ()
    stopped: Callable[[], bool] = lambda: False

    @property
    def rows(self) -> list[tuple[str, GateSetting]]:
        """PEFT names and gates of the base and of the readers."""
        gates = self.gates or [AS_TRAINED for _ in self.variants]
        readers = ((peft_name(name), gate) for name, gate in zip(self.variants, gates, strict=True))
        return [(BASE_ROW, AS_TRAINED), *readers]

    @property
    def length(self) -> int:
        """Number of tokens that are read: all but the answer's last, which nothing follows."""
        return len(self.prompt) + len(self.answer) - 1


# (R, T) float32 log p_base(token) - log p_reader(token), and (R, T) float32 KL(p_base || p_reader); on the CPU.
DriftTensors = tuple[Tensor, Tensor]


@torch.inference_mode()
def read_answers(
    model: PreTrainedModel, scopes: RowScopes, readings: Sequence[AnswerReading]
) -> Generator[None, None, list[DriftTensors | None]]:
    """Let variants read answers, all of them in one batch. Each yield is a forward.

    They are read in pieces on a KV cache, so that the logits of a long answer over a large vocabulary are never there
    all at once.

    Args:
        model: the base model with its adapters, or without any.
        scopes: of the model.
        readings: at least one; several where a model takes padding.

    Returns:
        For each reading its drift; None if it was stopped.
    """
    rows, comparisons = _rows_of(readings), [_Comparison(reading) for reading in readings]
    names, gates = [row.name for row in rows], [row.gate for row in rows]
    in_order = sorted(range(len(rows)), key=lambda at: rows[at].place)
    places = [[at for at in in_order if rows[at].reading == number] for number in range(len(readings))]
    batch_rows = scopes.rows(names, gates) if scopes.adapted else None
    width, answered = max(reading.length for reading in readings), max(len(reading.answer) for reading in readings)
    padding = [width - readings[row.reading].length for row in rows]
    # The last of an answer's tokens stands at the end of each row, as does the prediction of it.
    texts = [[*reading.prompt, *reading.answer[:-1]] for reading in readings]
    ids = torch.tensor(
        [[0] * p + texts[row.reading] for p, row in zip(padding, rows, strict=True)], device=model.device
    )
    starts = torch.tensor(padding, device=model.device).unsqueeze(1)
    columns = torch.arange(width, device=model.device)
    positions, mask = (columns - starts).clamp_min(0), (columns >= starts).long() if any(padding) else None
    piece = max(1, LOGITS_AT_ONCE // (len(rows) * model.config.get_text_config().vocab_size))
    cache, silent, longest = growing_cache(model.config), width - answered, longest_piece(model.config)
    begin = 0
    while begin < width:
        if all(reading.stopped() for reading in readings):
            break
        # Pieces of the prompt that predict nothing of the answer; then the rest of it with the first of the answer.
        upto = begin + longest if silent - begin > longest else min(max(begin, silent) + piece, width)
        logit_columns = max(0, upto - max(begin, silent))
        mask_so_far = None if mask is None else mask[:, :upto]
        arguments = forward_arguments(
            model, ids[:, begin:upto], positions[:, begin:upto], mask_so_far, cache, keep=max(1, logit_columns)
        )
        with scopes.answering(batch_rows):
            logits = model(**arguments).logits
        if logit_columns:
            for number, comparison in enumerate(comparisons):
                comparison.add(logits[places[number], -logit_columns:], width - upto)
        begin = upto
        yield
    return [comparison.drift for comparison in comparisons]


class _ReaderRow(NamedTuple):
    """A row of the batch: its PEFT name, the index of its reading, its index there, and its gate."""

    name: str
    reading: int
    place: int
    gate: GateSetting


def _rows_of(readings: Sequence[AnswerReading]) -> list[_ReaderRow]:
    """The rows of all readings; with several readings, rows of one adapter are neighbours."""
    rows = [
        _ReaderRow(name, number, place, gate)
        for number, reading in enumerate(readings)
        for place, (name, gate) in enumerate(reading.rows)
    ]
    return sorted(rows, key=lambda row: row.name) if len(readings) > 1 else rows


class _Comparison:
    """Drift of one answer, as far as it has been read."""

    def __init__(self, reading: AnswerReading) -> None:
        self._reading = reading
        self._ratios: list[Tensor] = []
        self._divergences: list[Tensor] = []

    def add(self, logits: Tensor, behind: int) -> None:
        """Add the (1 + R, t, V) logits of the base and the readers at t columns, with `behind` columns after them."""
        answer = self._reading.answer
        end = len(answer) - behind
        begin = max(0, end - logits.shape[1])
        if end <= begin:
            return  # another answer is longer
        log_p = logits[:, begin - end :].float().log_softmax(-1)
        tokens = torch.tensor(answer[begin:end], device=logits.device)
        picked = log_p.gather(-1, tokens.expand(len(log_p), -1).unsqueeze(-1)).squeeze(-1)
        self._ratios.append((picked[:1] - picked).cpu())
        base = log_p[0]
        p = base.exp()
        # Row by row, so that no second tensor over rows and vocabulary is made. Rounding may leave a tiny negative.
        kl = [torch.where(p > 0, p * (base - other), 0).sum(-1).clamp_min_(0) for other in log_p]
        self._divergences.append(torch.stack(kl).cpu())

    @property
    def drift(self) -> DriftTensors | None:
        parts = (self._ratios, self._divergences)
        if self._reading.stopped() or not self._ratios:
            return None
        ratios, divergences = (torch.cat(pieces, dim=1)[1:] for pieces in parts)
        return ratios, divergences


def drift_of(variants: Sequence[str], tokens: tuple[str, ...], tensors: DriftTensors) -> Drift:
    """The drift of an answer as plain data.

    Args:
        variants: names of the readers.
        tokens: texts of the answer's tokens.
        tensors: of `read_answers`.
    """
    readers = zip(variants, *tensors, strict=True)
    return Drift(tokens, tuple(VariantDrift(name, ratio, kl) for name, ratio, kl in readers))


def answer_to_read(step: Step, reading: Reading, base: str) -> tuple[int, ...]:
    """The base's answer, which the readers are to read; empty if there is none.

    Args:
        step: the end of the answers.
        reading: which variants read them.
        base: the base's name among the rows.
    """
    for row in step.rows:
        if row.variant == base:
            return row.token_ids if row.finish_reason != "error" else ()
    return reading.answer_ids
