# SPDX-License-Identifier: Apache-2.0
"""The inputs of a forward that show where sequences begin and which tokens count."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from .contexts import Sequences
from .sequence_state import NOT_READ, UNKNOWN, SequenceState, part_with_tokens, state_on, tokens_in


# transformers 5.24 renames the first; Mamba, RWKV, XLNet and Reformer have the others.
CACHE_NAMES = ("past_key_values", "cache", "cache_params", "state", "mems", "past_buckets_states")
CHANGED = "code other than the adapted model added or removed some of them"
# The label of a token without loss.
IGNORED = -100


def given_cache(arguments: dict[str, Any]) -> Any:
    """The key-value cache among a forward's arguments, or in its result; None if there is none."""
    # A model's output warns where it is asked for the old name.
    names = [name for name in CACHE_NAMES if name in set(arguments)]
    return next((arguments[name] for name in names if arguments[name] is not None), None)


def returned_cache(output: Any) -> Any:
    """The key-value cache in what a forward returned; None if there is none."""
    if isinstance(output, dict):
        return given_cache(output)
    if isinstance(output, tuple):
        return next((value for value in output if isinstance(value, Cache)), None)
    return None


def sequences_of(
    model: nn.Module, arguments: dict[str, Any], adapters: list[str] | None, contextual: bool
) -> Sequences | None:
    """The sequences that a forward reads.

    Args:
        model: whose forward it is.
        arguments: of that forward, by name.
        adapters: the adapter of each row, or of as many neighbouring rows as the batch is larger; None for the active
            ones.
        contextual: whether any adapter uses contexts, so that what the cache remembers matters.

    Returns:
        None if the arguments do not say which tokens are read.
    """
    tokens = next((arguments[n] for n in ("input_ids", "inputs_embeds") if isinstance(arguments.get(n), Tensor)), None)
    if tokens is None or tokens.dim() < 2:
        return None
    batch, length = tokens.shape[:2]
    given = given_cache(arguments)
    cache = given if contextual else None
    positions = arguments.get("position_ids")
    if not (isinstance(positions, Tensor) and positions.dim() == 2 and positions.shape[1] == length):
        positions = None
    state, unknown = _known(cache, batch, adapters)
    sequences = Sequences(
        batch,
        length,
        tokens.device,
        tokens if tokens.dim() == 2 else None,
        _valid(arguments.get("attention_mask"), tokens, positions, given),
        positions,
        state,
        unknown,
        keeps=contextual and _goes_on(model, arguments, cache),
        # A static cache cannot be cropped, and a compiled step wants the same shapes each time.
        trail=not getattr(part_with_tokens(cache), "is_compileable", False),
    )
    if sequences.ended is not None:
        sequences.ended.adapters = _of_rows(adapters, batch)
        sequences.ended.length = _longer(state, length)
    labels = arguments.get("labels")
    if isinstance(labels, Tensor) and labels.shape == (batch, length):
        sequences.taught = labels != IGNORED
    memory = arguments.get("encoder_hidden_states")
    if isinstance(memory, Tensor) and memory.dim() == 3:
        mask = arguments.get("encoder_attention_mask")
        valid = mask != 0 if isinstance(mask, Tensor) and mask.shape == memory.shape[:2] else None
        sequences.memory = (memory, Sequences(memory.shape[0], memory.shape[1], memory.device, valid=valid))
    return sequences


def _valid(mask: Any, tokens: Tensor, positions: Tensor | None, cache: Any) -> Tensor | None:
    """(B, T) bool, False for padding; None if every token counts."""
    batch, length = tokens.shape[:2]
    if not isinstance(mask, Tensor) or mask.shape[0] != batch:
        return None
    if mask.dim() == 2 and mask.shape[1] >= length:
        valid = _of_tokens(mask, length, cache) != 0
    elif mask.dim() == 4 and mask.shape[2] == length and (positions is None or cache is None):
        # A full attention mask, as packed sequences have one. A token that counts attends to itself. `generate` makes
        # such a mask for a static cache, together with positions, which begin behind the padding.
        past = mask.shape[3] - length if cache is None or not hasattr(cache, "get_seq_length") else None
        past = int(cache.get_seq_length()) if past is None else past
        allowed = mask[:, 0] if mask.dtype == torch.bool else mask[:, 0] == 0
        valid = allowed.diagonal(past, -2, -1)
        if valid.shape[1] != length:
            return None
    else:
        return None
    if not torch.compiler.is_compiling() and valid.device.type == "cpu" and valid.all():
        return None
    return valid


def _of_tokens(mask: Tensor, length: int, cache: Any) -> Tensor:
    """(B, T) columns of a 2-D mask that belong to the tokens of the forward. It also covers what is in the cache, and
    may cover what comes later: a static cache's empty places, or the rest of a prompt that is read in pieces.
    """
    read_cache, last = part_with_tokens(cache), mask.shape[1] - length
    past = tokens_in(read_cache) if last and isinstance(read_cache, Cache) else None
    if isinstance(past, Tensor):
        columns = past.to(mask.device).clamp(max=last) + torch.arange(length, device=mask.device)
        return mask.index_select(1, columns)
    start = last if past is None else min(past, last)
    return mask[:, start : start + length]


def _known(cache: Any, batch: int, adapters: list[str] | None) -> tuple[SequenceState | None, str | None]:
    """The state a cache remembers (None if empty), and why it cannot be continued (None if it can)."""
    if cache is None:
        return None, None
    read_cache = part_with_tokens(cache)
    if not isinstance(read_cache, Cache):
        return None, "SLIM needs one of transformers' caches to remember contexts in; this one is a " + (
            f"{type(cache).__name__}. Pass a `DynamicCache`, or none (`use_cache=False`)."
        )
    state = state_on(cache)
    if torch.compiler.is_compiling() and state is not None:
        return state, None
    length = tokens_in(read_cache)
    if state is None:
        count = "some" if length is None else int(length)
        return None, UNKNOWN.format(length=count, why=CHANGED) if count else None
    # A static cache says its length in a tensor; after a compiled forward it is not asked for.
    if length is not None and (isinstance(length, int) or state.length is not None):
        length = int(length)
        if length == 0:
            return None, None
        if state.length not in (None, length):
            return None, UNKNOWN.format(length=length, why=CHANGED)
    count = state.length or "some"
    if state.rows not in (None, batch):
        return None, UNKNOWN.format(length=count, why=f"it remembers {state.rows} rows, and {batch} are read now")
    if not _goes_with(state.adapters, _of_rows(adapters, batch)):
        return None, UNKNOWN.format(length=count, why=NOT_READ)
    return state, None


def _goes_with(before: tuple[str, ...] | None, now: tuple[str, ...] | None) -> bool:
    """Whether rows with these adapters may continue a cache that rows with those adapters have filled."""
    # If the active adapters read it, each of their routers has read it for every row.
    if before is None or before == now:
        return True
    if now is None or len(before) != len(now):
        return False
    return all(earlier == name or name == "__base__" for earlier, name in zip(before, now, strict=True))


def _of_rows(adapters: list[str] | None, batch: int) -> tuple[str, ...] | None:
    if adapters is None:
        return None
    times = max(1, batch // max(1, len(adapters)))
    return tuple(name for name in adapters for _ in range(times))


def _longer(state: SequenceState | None, tokens: int) -> int | None:
    if torch.compiler.is_compiling():
        # A number that changes with each step would be a new graph for each.
        return None
    if state is None:
        return tokens
    return None if state.length is None else state.length + tokens


def _goes_on(model: nn.Module, arguments: dict[str, Any], cache: Any) -> bool:
    """Whether there is or will be a cache from which a later forward may continue."""
    if cache is not None:
        return True
    if torch.compiler.is_compiling():
        return False
    use_cache = arguments.get("use_cache")
    if use_cache is None:
        # In training a forward is not continued unless a cache is passed.
        return not model.training and bool(getattr(getattr(model, "config", None), "use_cache", False))
    return bool(use_cache)
