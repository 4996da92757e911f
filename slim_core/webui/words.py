# SPDX-License-Identifier: Apache-2.0
"""Sentences and numbers for people, the same wherever they stand."""

from __future__ import annotations

from pathlib import Path

from ..base.formatting import count, likelihood, size
from ..inference.types import Drift, ModelInfo, RowStep, Sampling, Variant


FINISHED = {
    "end": "done",
    "length": "done: length limit reached",
    "stop_string": "done: stop text reached",
    "stopped": "stopped",
    "error": "error",
}


def drift_sentence(drift: Drift, labels: dict[str, str]) -> str:
    """One sentence for all variants."""
    parts = [
        f"{labels.get(variant.variant, variant.variant)} finds {'it' if i else 'the base’s answer'} "
        f"{likelihood(variant.total)}"
        for i, variant in enumerate(drift.variants)
    ]
    return "; ".join(parts) + "." if parts else ""


def how(sampling: Sampling, step: RowStep, strength: float | None = None) -> str:
    """How tokens were chosen, with which gate, and when the first one came, in a few words."""
    chosen = f"temperature {sampling.temperature:g}, seed {sampling.seed}" if sampling.temperature else "greedy"
    if strength is not None:
        chosen += f" · gate of strength {strength:g}" if strength else " · gate open"
    first = step.first_token_seconds
    return chosen if first is None else f"{chosen} · first token after {first:,.2f} s"


def state(step: RowStep, place: int = 0) -> str:
    """What is happening to one answer."""
    if step.state == "waiting":
        return f"waiting, {place} in line before you" if place else "waiting"
    if step.state == "reading":
        return "reading the prompt"
    if step.state == "writing":
        return "writing"
    return FINISHED[step.finish_reason or "end"]


def speed(step: RowStep) -> str:
    """Tokens, tokens/s and time of one answer."""
    parts = []
    if step.tokens:
        parts.append(f"{step.tokens:,} token{'s' if step.tokens != 1 else ''}")
    if step.tokens_per_second:
        parts.append(f"{step.tokens_per_second:,.1f} tokens/s")
    if step.seconds:
        parts.append(f"{step.seconds:,.{1 if step.seconds >= 1 else 2}f} s")
    return " · ".join(parts)


def base_name(info: ModelInfo) -> str:
    """The base's name for visitors; of a folder the last part, as its place on the server is not theirs to know."""
    return Path(info.name).name if Path(info.name).is_dir() else info.name


def describe(variant: Variant, info: ModelInfo) -> str:
    """A variant's size line."""
    line = f"{count(variant.parameters)} parameters, {size(variant.bytes)}"
    if variant.kind == "base":
        return f"{base_name(info)}: {line}, {variant.detail or info.dtype}"
    return f"{line}, {variant.detail}" if variant.detail else line
