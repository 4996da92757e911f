# SPDX-License-Identifier: Apache-2.0
"""Drift: how likely the variants find the base's own answer. What they no longer find likely, they have forgotten."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..base.errors import EngineError, is_out_of_memory, out_of_memory_sentence
from ..base.prompts import Prompts
from ..method import BASE_ROW, context_of
from ..outside.errors import first_line
from ..peft_tools import adapter_rows
from .cache import growing_cache, longest_piece
from .forward import forward_arguments
from .types import Drift, Reading, Step, VariantDrift
from .variants import peft_name


# Values of the largest tensor over the vocabulary that is held at once; a few of this size are alive together.
LOGITS_AT_ONCE = 2**25


class StoppedReading(Exception):
    """The reading is no longer wanted."""


@torch.inference_mode()
def read_answer(
    model: PreTrainedModel,
    prompt: Sequence[int],
    answer: Sequence[int],
    rows: int,
    stopped: Callable[[], bool] = lambda: False,
) -> tuple[Tensor, Tensor]:
    """Let every row of the batch read the same answer, and compare each with row 0.

    The caller has set whose rows they are. The answer is read in pieces on a KV cache, so that the logits of a long
    answer over a large vocabulary are never there all at once.

    Args:
        model: the base model with its adapters.
        prompt: P token ids before the answer.
        answer: T > 0 token ids.
        rows: B, how many read it.
        stopped: asked before each piece.

    Returns:
        (B, T) float32 log p_0(token) - log p_b(token), and (B, T) float32 KL(p_0 || p_b); on the CPU.

    Raises:
        StoppedReading: if it was stopped.
    """
    ratios, divergences = [], []
    start = 0
    for logits in _logits_of(model, prompt, answer, rows, stopped):
        log_p = logits.float().log_softmax(-1)
        tokens = torch.tensor(answer[start : start + logits.shape[1]], device=logits.device)
        start += logits.shape[1]
        picked = log_p.gather(-1, tokens.expand(rows, -1).unsqueeze(-1)).squeeze(-1)
        ratios.append((picked[:1] - picked).cpu())
        base = log_p[0]
        p = base.exp()
        # Row by row, so that no second tensor over rows and vocabulary is made. Rounding may leave a tiny negative.
        kl = [torch.where(p > 0, p * (base - other), 0).sum(-1).clamp_min_(0) for other in log_p]
        divergences.append(torch.stack(kl).cpu())
    return torch.cat(ratios, dim=1), torch.cat(divergences, dim=1)


def drift_of(
    model: PreTrainedModel,
    prompts: Prompts,
    prompt: Sequence[int],
    answer: Sequence[int],
    variants: Sequence[str],
    strengths: Sequence[float | None],
    stopped: Callable[[], bool],
) -> Drift:
    """Let the variants read an answer of the base, in one batch with the base itself.

    Args:
        model: the base model with its adapters, or without any.
        prompts: how tokens are written.
        prompt: P token ids before the answer.
        answer: T > 0 token ids.
        variants: names of the readers.
        strengths: of their gates; empty for their own.
        stopped: asked before each piece.

    Raises:
        StoppedReading: if it was stopped.
        EngineError: if memory runs out or the model fails.
    """
    readers = [BASE_ROW, *map(peft_name, variants)]
    own = [None, *strengths] if any(strength is not None for strength in strengths) else None
    adapted = context_of(model) is not None
    try:
        with adapter_rows(model, readers, own) if adapted else nullcontext():
            ratios, divergences = read_answer(model, prompt, answer, len(readers), stopped)
    except StoppedReading:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise EngineError(out_of_memory_sentence(model.device, len(readers))) from None
        raise EngineError(f"The model failed while it read the answer: {first_line(error)}.") from error
    read = zip(variants, ratios[1:], divergences[1:], strict=True)
    return Drift(prompts.token_texts(answer), tuple(VariantDrift(name, ratio, kl) for name, ratio, kl in read))


def _logits_of(
    model: PreTrainedModel, prompt: Sequence[int], answer: Sequence[int], rows: int, stopped: Callable[[], bool]
) -> Iterator[Tensor]:
    """(B, t, V) logits that predict t tokens of the answer, piece by piece."""
    piece = max(1, LOGITS_AT_ONCE // (rows * model.config.get_text_config().vocab_size))
    # The last token predicts nothing in the answer.
    ids = torch.tensor([*prompt, *answer[:-1]], device=model.device).expand(rows, -1)
    cache, silent, most = growing_cache(model.config), len(prompt) - 1, longest_piece(model.config)
    done = 0
    while done < ids.shape[1]:
        if stopped():
            raise StoppedReading
        # Pieces of the prompt that predict nothing of the answer; then the rest of it with the first of the answer.
        upto = done + most if silent - done > most else min(max(done, silent) + piece, ids.shape[1])
        wanted = max(0, upto - max(done, silent))
        positions = torch.arange(done, upto, device=model.device).expand(rows, -1)
        arguments = forward_arguments(model, ids[:, done:upto], positions, None, cache, keep=max(1, wanted))
        logits = model(**arguments).logits
        if wanted:
            yield logits[:, -wanted:]
        done = upto


def answer_to_read(step: Step, reading: Reading, base: str) -> tuple[int, ...]:
    """The tokens to read when the answers are finished; empty if there is nothing to read.

    Args:
        step: the end of the answers.
        reading: which variants read them.
        base: the base's name among the rows.
    """
    for row in step.rows:
        if row.variant == base:
            return row.token_ids if row.finish_reason != "error" else ()
    return reading.answer_ids
