# SPDX-License-Identifier: Apache-2.0
"""Likelihood of given words under the variants: all variants and several passages are rows of one batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..base.errors import EngineError, is_failure, is_out_of_memory, out_of_memory_sentence
from ..method import GateSetting, context_of
from ..outside.errors import first_line
from ..peft_tools import RowRouting, adapter_rows, trace_routing, traceable_adapters
from .cache import growing_cache
from .drift import LOGITS_AT_ONCE
from .forward import forward_arguments
from .records import block_of
from .types import Likelihood
from .variants import peft_name


# Tokens of all rows of one forward, padding included.
TOKENS_AT_ONCE = 2**14


@dataclass(frozen=True)
class _Text:
    """The text of one row: P tokens, then words of T tokens, of which the last is not read."""

    before: tuple[int, ...]
    words: tuple[int, ...]

    @property
    def read(self) -> tuple[int, ...]:
        return (*self.before, *self.words[:-1])


def likelihoods(
    model: PreTrainedModel,
    passages: Sequence[tuple[Sequence[int], Sequence[int]]],
    variants: Sequence[str],
    gates: Sequence[GateSetting],
    routing: bool,
    between: Callable[[], AbstractContextManager],
) -> list[Likelihood]:
    """Let the variants read passages.

    Passages that differ only in their last token are read once: options of one letter cost one forward.

    Args:
        model: the base model with its adapters, or without any, in evaluation mode.
        passages: for each the P > 0 tokens before it, and its own T > 0 tokens.
        variants: V names, of which some may come twice; KL is measured against "base" if it is among them.
        gates: how soon theirs close, as `Row.gate`; empty for as they were trained.
        routing: whether the shares past LoRA are recorded.
        between: a context for each forward, in which nobody else makes one.

    Raises:
        EngineError: if memory runs out or the model fails.
    """
    texts = [_Text(tuple(before), tuple(words)) for before, words in passages]
    by_index: dict[int, Likelihood] = {}
    # Grouped by what is read, so that it is read once, with similar lengths together.
    alike: dict[tuple[int, ...], list[int]] = {}
    for index, text in enumerate(texts):
        alike.setdefault(text.read, []).append(index)
    groups = sorted(alike.values(), key=lambda group: len(texts[group[0]].read))
    try:
        for batch in _batches(groups, texts, len(variants), model.config.get_text_config().vocab_size):
            with between():
                by_index.update(_read(model, batch, texts, variants, gates, routing))
    except Exception as error:
        if is_out_of_memory(error):
            raise EngineError(out_of_memory_sentence(model.device, len(variants))) from None
        if isinstance(error, EngineError) or not is_failure(error):
            raise
        raise EngineError(f"The model failed while it read a text: {first_line(error)}.") from error
    return [by_index[index] for index in range(len(texts))]


def _batches(
    groups: Sequence[list[int]], texts: Sequence[_Text], variants: int, vocabulary: int
) -> Iterator[list[list[int]]]:
    batch: list[list[int]] = []
    words = 0
    for group in groups:
        longest = len(texts[group[0]].read)  # groups are sorted, so this one is the longest
        words = max([words, *(len(texts[index].words) for index in group)])
        rows = (len(batch) + 1) * variants
        if batch and (rows * longest > TOKENS_AT_ONCE or rows * words * vocabulary > LOGITS_AT_ONCE):
            yield batch
            batch, words = [], max(len(texts[index].words) for index in group)
        batch.append(group)
    if batch:
        yield batch


@torch.inference_mode()
def _read(
    model: PreTrainedModel,
    batch: Sequence[list[int]],
    texts: Sequence[_Text],
    variants: Sequence[str],
    gates: Sequence[GateSetting],
    routing: bool,
) -> Iterator[tuple[int, Likelihood]]:
    """The likelihoods of the passages of a batch, with their index."""
    reads = [texts[group[0]].read for group in batch]
    keep = max(len(texts[index].words) for group in batch for index in group)
    width = max(map(len, reads))
    device = model.device
    # On the left, so that the words of all rows are the last columns and no other logits are made.
    padding = torch.tensor([width - len(read) for read in reads for _ in variants], device=device).unsqueeze(1)
    ids = torch.tensor([[0] * (width - len(read)) + list(read) for read in reads for _ in variants], device=device)
    columns = torch.arange(width, device=device)
    mask = (columns >= padding).long() if bool(padding.any()) else None
    positions = (columns - padding).clamp_min_(0)
    rows = [peft_name(name) for name in variants] * len(reads)
    adapted, traceable = context_of(model) is not None, traceable_adapters(model)
    with ExitStack() as scopes:
        trace = None
        if adapted:
            scopes.enter_context(adapter_rows(model, rows, [*gates] * len(reads) if gates else None))
            if routing and any(row in traceable for row in rows):
                trace = scopes.enter_context(trace_routing(model))
        cache = growing_cache(model.config)
        logits = model(**forward_arguments(model, ids, positions, mask, cache, keep=keep)).logits[:, -keep:]
    log_p = logits.float().log_softmax(-1).unflatten(0, (len(reads), len(variants)))
    base = list(variants).index("base") if "base" in variants else None
    for place, group in enumerate(batch):
        for index in group:
            words = torch.tensor(texts[index].words, device=device)
            of_text = log_p[place, :, -len(words) :]
            picked = of_text.gather(-1, words.expand(len(variants), -1).unsqueeze(-1)).squeeze(-1)
            shares = {}
            if trace is not None:
                at = place * len(variants)
                shares = {
                    row - at: _by_block(trace.row(row), len(texts[index].before))
                    for row in trace.rows
                    if at <= row < at + len(variants)
                }
            yield (
                index,
                Likelihood(
                    log_probs=picked.cpu(),
                    greedy=(of_text.argmax(-1) == words).cpu(),
                    kl=None if base is None else _divergence(of_text, base).cpu(),
                    identity=shares,
                ),
            )


def _divergence(log_p: Tensor, base: int) -> Tensor:
    """(V, T) KL(p_base || p_v) of (V, T, vocabulary) log-probabilities, without the tiny negatives of rounding."""
    p = log_p[base].exp()
    # Row by row, so that no second tensor over rows and vocabulary is made.
    return torch.stack([torch.where(p > 0, p * (log_p[base] - other), 0).sum(-1).clamp_min_(0) for other in log_p])


def _by_block(routing: RowRouting, prompt_tokens: int) -> tuple[float, ...]:
    """The mean share past LoRA of the tokens before the words, for each block from the first to the last."""
    shares = routing.identity[:, :prompt_tokens].mean(1)
    blocks: dict[int, list[Tensor]] = {}
    for module, share in zip(routing.modules, shares, strict=True):
        blocks.setdefault(block_of(module), []).append(share)
    return tuple(torch.stack(blocks[block]).mean().item() for block in sorted(blocks))
